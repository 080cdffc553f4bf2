// The page Speech: sound to the console, messages of live speech back, the transcript that they make (transcript.js),
// and what a person makes of it. Text only ever goes in by textContent.
"use strict";
const millstreamSpeech = (() => {
  const UNSENT_MAX = 4 << 20; // bytes that a slow network holds back: 40 s and more
  const POINTS_MAX = 40;
  const COLOURS = ["one", "two", "three", "four", "five"];

  let asked, texts, parts, held, talk;
  const drawn = new Map(); // id of a line -> its element
  const colours = new Map(); // id of a speaker -> name of a colour
  let first = [], final = []; // [seconds of the session, ms]

  const say = (name, values = {}) =>
    Object.entries(values).reduce((text, [key, value]) => text.replace(`{${key}}`, () => value), texts[name]);
  const make = (tag, classes = "", text = "", more = {}) => {
    const made = Object.assign(document.createElement(tag), more);
    if (classes) made.className = classes;
    if (text) made.textContent = text;
    return made;
  };
  const icon = (name) => {
    const made = make("i", "q-icon notranslate material-icons", name);
    made.setAttribute("aria-hidden", "true");
    return made;
  };
  const button = (name, picture, press, kind = "") => {
    const made = make("button", `button ${kind}`, "", { type: "button", onclick: press });
    made.append(icon(picture), make("span", "", say(name)));
    return made;
  };
  const choice = (name, options) => {
    const made = make("label", "speech-choice");
    const select = make("select", "field");
    for (const [value, text] of options) select.append(make("option", "", text, { value }));
    made.append(make("span", "soft small-text", say(name)), select);
    return [made, select];
  };
  const card = (name, ...content) => {
    const made = make("section", "card");
    made.append(make("h2", "", say(name)), ...content);
    return made;
  };

  // Where the page's parts stand.

  const begin = (given) => {
    asked = given;
    texts = given.texts;
    const root = document.getElementById("speech");
    const file = make("input", "", "", { type: "file", accept: "audio/*,video/*", hidden: true });
    file.onchange = () => {
      if (file.files.length) open({ file: file.files[0] });
      file.value = "";
    };
    const profiles = given.profiles.map((one) => [one, one]);
    const [profile, profileAt] = choice("profile", profiles);
    profileAt.value = given.profile;
    const [language, languageAt] = choice("language", [["", say("any_language")], ["en", "English"], ["zh", "中文"]]);
    const policies = given.policies.map((one) => [one, say(`policy.${one}`)]);
    const [speakers, speakersAt] = choice("speakers", [["", say("as_profile")], ...policies]);
    speakers.hidden = !policies.length;
    parts = {
      microphone: button("microphone", "mic", () => open({}), "main"),
      play: button("file", "play_arrow", () => file.click()),
      stop: button("stop", "stop", finish, "danger"),
      profile: profileAt, language: languageAt, speakers: speakersAt,
      level: make("span", "meter-fill"),
      state: make("p", "soft speech-state"),
      wrong: make("div"),
      lines: make("ol", "speech-lines"),
      empty: make("p", "empty", say("empty")),
      chart: make("div"),
      load: make("p", "soft small-text"),
      names: make("datalist", "", "", { id: "speech-names" }),
      exports: make("div", "row"),
    };
    parts.state.setAttribute("role", "status");
    parts.lines.setAttribute("role", "log");
    parts.lines.setAttribute("aria-label", say("transcript"));
    const track = make("span", "meter-track speech-level", "", { title: say("level") });
    track.setAttribute("aria-hidden", "true");
    track.append(parts.level);
    for (const form of given.formats) {
      const one = make("button", "button small", form, { type: "button", onclick: () => write(form) });
      one.setAttribute("aria-label", say("export_form", { form }));
      parts.exports.append(one);
    }
    const controls = make("section", "card speech-controls");
    const press = make("div", "row");
    press.append(parts.microphone, parts.play, parts.stop, track, file);
    const choices = make("div", "row");
    choices.append(profile, language, speakers);
    controls.append(choices, press, parts.state);
    const keys = make("p", "soft small-text keys");
    keys.append(make("kbd", "", "p"), " ", say("keys"));
    const page = make("div", "speech-grid");
    const beside = make("div");
    const latency = card("latency", parts.chart, parts.load, make("p", "soft small-text", say("latency_more")));
    beside.append(latency, card("export", parts.exports));
    page.append(card("transcript", parts.lines, parts.empty, keys), beside);
    root.append(make("p", "soft small-text", say("intro")), controls, parts.wrong, page, parts.names);
    document.addEventListener("keydown", (event) => {
      const busy = event.target.closest("input, textarea, select") || document.querySelector("dialog[open]");
      if (event.key !== "p" || event.ctrlKey || event.metaKey || event.altKey || busy) return;
      if (talk) finish();
      else open({});
    });
    clear();
  };

  const clear = () => {
    held = new MillstreamTranscript();
    drawn.clear();
    colours.clear();
    first = [];
    final = [];
    parts.lines.replaceChildren();
    parts.wrong.replaceChildren();
    parts.names.replaceChildren();
    parts.load.textContent = "";
    parts.chart.replaceChildren(...millstreamLatency(first, final, say));
    state("");
  };
  const state = (name) => {
    parts.state.textContent = name ? say(name) : "";
    parts.microphone.disabled = parts.play.disabled = Boolean(talk);
    for (const one of [parts.profile, parts.language, parts.speakers]) one.disabled = Boolean(talk);
    parts.stop.disabled = !talk || talk.finishing;
    for (const one of parts.exports.children) one.disabled = !held.shown().length;
    parts.empty.hidden = held.shown().length > 0;
  };
  const wrong = (text) => {
    const box = make("div", "notice bad");
    box.setAttribute("role", "alert");
    box.append(icon("error_outline"), make("span", "", text));
    parts.wrong.replaceChildren(box);
  };

  // Sound to the service.

  const open = async (source) => {
    if (talk) return;
    const mine = (talk = { sound: new MillstreamSound(say), onset: null, finishing: false });
    clear();
    state("opening");
    try {
      await mine.sound.open(source.file, (piece) => send(mine, piece), () => finish());
    } catch (error) {
      if (talk === mine) over(error.message);
      return;
    }
    if (talk !== mine) return shut(mine);
    state("connecting");
    const socket = (mine.socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}${asked.live}`));
    const start = { type: "start", form: "pcm16", rate: mine.sound.rate };
    for (const name of ["profile", "language", "speakers"]) if (parts[name].value) start[name] = parts[name].value;
    socket.onopen = () => socket.send(JSON.stringify(start));
    socket.onmessage = (event) => {
      if (talk === mine) heard(JSON.parse(event.data));
    };
    socket.onclose = () => {
      if (talk === mine) over(say("lost"));
    };
  };
  const listen = () => {
    talk.sound.start();
    state("listening");
  };
  const send = (mine, { audio, peak, over: last }) => {
    if (talk !== mine || mine.socket.readyState !== WebSocket.OPEN) return;
    if (mine.socket.bufferedAmount > UNSENT_MAX) return over(say("behind"));
    if (audio.byteLength) mine.socket.send(audio);
    parts.level.style.width = `${Math.max(0, 100 + (20 * Math.log10(peak + 1e-6) * 100) / 60).toFixed(0)}%`;
    if (last) mine.socket.send('{"type":"finish"}');
  };
  const finish = () => {
    if (!talk || talk.finishing) return;
    if (!talk.socket || talk.socket.readyState !== WebSocket.OPEN) return over();
    talk.finishing = true;
    talk.sound.finish();
    state("finishing");
  };
  const over = (why = "") => {
    const gone = talk;
    talk = undefined;
    held.name = gone.sound.name;
    held.seconds = gone.sound.seconds;
    shut(gone);
    for (const [ident, line] of held.lines) {
      if (line.state === "final") continue; // nobody makes it final any more
      held.lines.delete(ident);
      if (drawn.has(ident)) drawn.get(ident).remove();
      drawn.delete(ident);
    }
    parts.level.style.width = "0";
    if (why) wrong(why);
    state(held.ended ? "done" : "");
  };
  const shut = ({ sound, socket }) => {
    sound.close();
    if (socket) socket.close();
  };

  // Messages from the service.

  const heard = (told) => {
    held.hear(told);
    if (told.type === "ready") listen();
    else if (told.type === "error") {
      if (told.fatal !== false) return over(told.error);
      wrong(told.error);
    } else if (told.type === "metrics") {
      const load = say("load", { rtf: told.rtf.toFixed(2), queue: told.queue_ms });
      parts.load.textContent = told.degraded ? `${load} · ${say("degraded", { what: told.degraded })}` : load;
    } else if (told.type === "vad" && told.state === "start") talk.onset = told.t;
    else if (told.type === "segment") time(told);
    if (told.type === "speaker") {
      for (const line of held.shown()) show(line);
      const names = new Set(held.shown().map((line) => held.who(line)));
      parts.names.replaceChildren(...[...names].map((value) => make("option", "", "", { value })));
    } else if (held.lines.has(told.id)) show(held.lines.get(told.id));
    if (told.type === "end") over();
  };
  const time = (told) => {
    const now = performance.now();
    if (told.words.length && talk.onset !== null) {
      first.push([talk.onset, now - talk.sound.taken(talk.onset)]);
      talk.onset = null;
    }
    if (told.state === "final") final.push([told.end, now - talk.sound.taken(told.end)]);
    first = first.slice(-POINTS_MAX);
    final = final.slice(-POINTS_MAX);
    parts.chart.replaceChildren(...millstreamLatency(first, final, say));
  };

  // The transcript.

  const show = (line) => {
    if (!line.rev) return;
    let at = drawn.get(line.id);
    if (!at) drawn.set(line.id, (at = make("li", "speech-line")));
    if (at.querySelector("input, textarea")) return; // somebody writes in it: it is drawn when they are done
    const last = parts.lines.getBoundingClientRect().bottom < innerHeight + 80;
    const whole = line.state === "final";
    at.dataset.id = line.id;
    at.dataset.state = line.state;
    at.setAttribute("aria-hidden", String(!whole)); // what changes all the time is not read out
    at.replaceChildren(speaker(line, whole), clock(line.start), whole ? settled(line) : open_words(line));
    place(line, at);
    if (last && talk && at === parts.lines.lastChild) at.scrollIntoView({ block: "nearest" });
    parts.empty.hidden = true;
    for (const one of parts.exports.children) one.disabled = false;
  };
  const place = (line, at) => {
    const order = held.shown();
    const next = order[order.indexOf(line) + 1];
    const before = next && drawn.get(next.id) && drawn.get(next.id).parentNode ? drawn.get(next.id) : null;
    if (at.parentNode !== parts.lines || at.nextSibling !== before) parts.lines.insertBefore(at, before);
  };
  const named = (line) => {
    const name = held.who(line);
    return name === "unknown" || name === "analysing" ? say(name) : name;
  };
  const speaker = (line, whole) => {
    const ident = held.whose(line);
    if (ident && !colours.has(ident)) colours.set(ident, COLOURS[colours.size % COLOURS.length]);
    const kind = `speech-who ${colours.get(ident) || ""}`;
    const made = make(whole ? "button" : "span", kind, named(line));
    if (line.speaker.overlap) made.append(make("span", "badge warn", say("overlap")));
    if (whole) {
      made.type = "button";
      made.setAttribute("aria-label", say("rename", { who: named(line) }));
      made.onclick = () => write_in(line, made, held.who(line), "speaker");
    }
    return made;
  };
  const clock = (seconds) => {
    const two = (value) => String(Math.floor(value)).padStart(2, "0");
    const hours = seconds >= 3600 ? `${Math.floor(seconds / 3600)}:` : "";
    return make("time", "soft small-text", `${hours}${two((seconds / 60) % 60)}:${two(seconds % 60)}`);
  };
  const words = (line, kind) =>
    line.words.flatMap((word, at) => {
      const space = at && word.space !== false ? " " : "";
      return [space, make("span", kind(word, at), word.text)]; // what marks a word begins with it
    });
  const open_words = (line) => {
    const made = make("p", "speech-text");
    made.append(...words(line, (word, at) => (at < line.stable ? "stable" : "loose")));
    return made;
  };
  const settled = (line) => {
    const made = make("button", "speech-text", "", { type: "button", title: say("correct") });
    if (line.edited !== null) made.append(line.edited, make("span", "badge accent", say("edited")));
    else made.append(...words(line, (word) => (word.confidence > 0 && word.confidence < 0.4 ? "unsure" : "")));
    made.onclick = () => write_in(line, made, held.text(line), "text");
    return made;
  };

  // A person corrects.

  const write_in = (line, at, old, what) => {
    const input = make(what === "text" ? "textarea" : "input", "field speech-edit", "", { value: old, maxLength: 4000 });
    input.setAttribute("aria-label", say(what === "text" ? "new_text" : "new_speaker"));
    if (what === "speaker") input.setAttribute("list", "speech-names");
    let done = false;
    const close = (save) => {
      if (done) return;
      done = true;
      const value = input.value.trim();
      input.remove();
      if (save && value && value !== old) edit(line, what, value);
      show(line);
      const again = drawn.get(line.id).querySelector(what === "text" ? ".speech-text" : ".speech-who");
      if (document.activeElement === document.body) again.focus();
    };
    input.onkeydown = (event) => {
      if (event.isComposing) return;
      if (event.key === "Enter" && !event.shiftKey) event.preventDefault(), close(true);
      if (event.key === "Escape") close(false);
    };
    input.onblur = () => close(true);
    at.replaceWith(input);
    input.focus();
    input.select();
  };
  const edit = (line, what, value) => {
    if (talk && talk.socket && talk.socket.readyState === WebSocket.OPEN && !held.ended) {
      talk.socket.send(JSON.stringify({ type: "edit", segment: line.id, [what]: value }));
      return;
    }
    const same = [...held.names].find(([ident, name]) => name === value || (!name && ident === value));
    const speaker = { id: same ? same[0] : "", name: value, score: 1 };
    const rev = Math.max(line.rev, line.speaker_rev, line.edited_rev) + 1;
    held.hear({ type: "edited", seq: held.seq, id: line.id, rev, ...(what === "text" ? { text: value } : { speaker }) });
  };
  const write = async (form) => {
    const lines = held.shown().filter((line) => line.state === "final");
    const told = lines.filter((line) => !["unknown", "analysing"].includes(held.who(line)));
    const body = {
      lines, who: Object.fromEntries(told.map((line) => [line.id, held.who(line)])), name: held.name || "speech",
      language: lines.map((line) => line.language).find(Boolean) || "",
      seconds: held.seconds || (talk ? talk.sound.seconds : 0),
    };
    const answer = await fetch(`${asked.written}?form=${form}`, { method: "POST", body: JSON.stringify(body) });
    const text = await answer.text();
    if (!answer.ok) return wrong(text);
    const link = make("a", "", "", { href: URL.createObjectURL(new Blob([text])), download: `${body.name}.${form}` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };

  return { begin };
})();
