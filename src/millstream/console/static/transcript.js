// The fold of live speech's messages, as spoken.py's Transcript and Line are: of each id, what has the highest revision.
"use strict";
const MillstreamTranscript = (() => {
  const NOBODY = { id: "", name: "unknown", score: 0, overlap: false };

  return class {
    constructor() {
      this.lines = new Map();
      this.names = new Map();
      this.into = new Map();
      this.named = new Map();
      this.seq = 0;
      this.ended = false;
    }
    hear(told) {
      if (!("seq" in told) || told.type === "ready") return;
      this.seq = Math.max(this.seq, told.seq);
      if (["segment", "correction", "edited"].includes(told.type)) this.change(told);
      else if (told.type === "speaker" && told.op === "merge") this.into.set(told.id, told.into || "");
      else if (told.type === "speaker" && told.seq > (this.named.get(told.id) || 0)) {
        this.names.set(told.id, told.name || "");
        this.named.set(told.id, told.seq);
      } else if (told.type === "end") this.ended = true;
    }
    change(told) {
      if (!this.lines.has(told.id)) {
        this.lines.set(told.id, {
          id: told.id, rev: 0, state: "partial", start: 0, end: 0, words: [], stable: 0, language: "",
          speaker: NOBODY, speaker_rev: 0, edited: null, edited_rev: 0,
        });
      }
      const line = this.lines.get(told.id);
      if (told.type === "segment" && told.rev > line.rev) {
        const { rev, state, start, end, words, stable = 0, language = "" } = told;
        Object.assign(line, { rev, state, start, end, words, stable, language });
      }
      if (told.type === "edited" && told.text != null && told.rev > line.edited_rev) {
        line.edited = told.text;
        line.edited_rev = told.rev;
      }
      const speaker = told.speaker || (told.type === "segment" ? NOBODY : null);
      if (speaker && told.rev > line.speaker_rev) {
        line.speaker = { ...NOBODY, ...speaker };
        line.speaker_rev = told.rev;
      }
    }
    whose(line) {
      let ident = line.speaker.id;
      for (let n = 0; n < this.into.size; n++) ident = this.into.has(ident) ? this.into.get(ident) : ident;
      return ident;
    }
    who(line) {
      const ident = this.whose(line);
      return this.names.get(ident) || (ident === line.speaker.id ? line.speaker.name : ident);
    }
    text(line) {
      if (line.edited !== null) return line.edited;
      return line.words.map((word) => (word.space === false ? word.text : ` ${word.text}`)).join("").trim();
    }
    shown() {
      const order = (a, b) => a.start - b.start || (a.id < b.id ? -1 : 1);
      return [...this.lines.values()].filter((line) => line.rev).sort(order);
    }
  };
})();
