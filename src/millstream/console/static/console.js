// What the pages do in the browser itself: theme, language, menu, shortcuts, notices and the moving picture of the loop.
// Text only ever goes in by textContent.
"use strict";
const millstream = (() => {
  const cookie = (name, value) => {
    document.cookie = `${name}=${value}; path=/; max-age=31536000; samesite=strict`;
  };
  const theme = () => {
    const root = document.documentElement;
    const next = root.dataset.theme === "dark" ? "light" : "dark";
    root.dataset.theme = next;
    cookie("millstream-theme", next);
    quasar();
  };
  // Quasar's own parts (inputs, dialogs) follow the theme.
  const quasar = () => {
    const dark = document.documentElement.dataset.theme === "dark";
    if (window.Quasar && Quasar.Dark && Quasar.Dark.isActive !== dark) Quasar.Dark.set(dark);
  };
  const language = (next) => {
    cookie("millstream-language", next);
    location.reload();
  };
  const menu = () => {
    const nav = document.querySelector("nav");
    const open = nav.classList.toggle("open");
    nav.querySelector(".menu").setAttribute("aria-expanded", String(open));
  };
  const help = () => {
    const box = document.getElementById("help");
    if (box && !box.open) box.showModal();
  };
  const tell = (text, kind) => {
    const place = document.getElementById("told");
    const box = document.createElement("div");
    box.className = `toast ${kind}`;
    box.setAttribute("role", kind === "bad" ? "alert" : "status");
    const words = document.createElement("span");
    words.textContent = text;
    const shut = document.createElement("button");
    shut.type = "button";
    shut.textContent = "×";
    shut.setAttribute("aria-label", "close");
    shut.onclick = () => box.remove();
    box.append(words, shut);
    place.append(box);
    while (place.children.length > 5) place.firstChild.remove();
    if (kind !== "bad") setTimeout(() => box.remove(), 6000);
  };
  // Put texts where the picture has places for them, and set how fast and how thick its streams are.
  const picture = (texts, rates) => {
    for (const [name, text] of Object.entries(texts)) {
      for (const at of document.querySelectorAll(`[data-text="${name}"]`)) {
        if (at.textContent !== text) at.textContent = text;
      }
    }
    for (const [name, rate] of Object.entries(rates)) {
      for (const at of document.querySelectorAll(`[data-stream="${name}"]`)) {
        const still = !(rate > 0);
        at.classList.toggle("still", still);
        if (!still) {
          const seconds = Math.max(0.6, Math.min(8, 4 / Math.log10(1 + 9 * rate))).toFixed(1);
          if (at.dataset.seconds !== seconds) {
            at.dataset.seconds = seconds;
            at.style.animationDuration = `${seconds}s`;
          }
        }
      }
    }
  };
  const writing = (at) => at.closest("input, textarea, select, [contenteditable]") !== null;
  let going = 0;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.target instanceof Element)) return;
    if (writing(event.target) || document.querySelector(".q-dialog, dialog[open]")) return;
    const letters = document.querySelector('meta[name="letters"]');
    const pages = Object.fromEntries((letters ? letters.content : "").split(" ").map((one) => one.split("=")));
    if (event.timeStamp - going < 1500 && pages[event.key]) {
      location.href = pages[event.key];
      event.preventDefault();
    } else if (event.key === "g") {
      going = event.timeStamp;
      return;
    } else if (event.key === "?") {
      help();
    } else if (event.key === "d") {
      theme();
    } else if (event.key === "/") {
      event.preventDefault();
      const search = document.querySelector("input[type=search], .search input");
      if (search) search.focus();
      else location.href = "/log?find=1";
    }
    going = 0;
  });
  window.addEventListener("load", () => {
    quasar();
    setTimeout(quasar, 300);
  });
  // What was drawn anew in place of what had the focus gets it.
  const focus = (selector) => {
    const next = selector ? document.querySelector(selector) : null;
    if (next && document.activeElement === document.body) next.focus({ preventScroll: true });
  };
  return { theme, language, menu, help, tell, picture, focus };
})();
