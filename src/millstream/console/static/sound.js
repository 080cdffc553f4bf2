// Sound for the page Speech: of a microphone, or of a file as if it were live, in pieces of 40 ms of PCM16
// (microphone.js), and when each was taken in.
"use strict";
const MillstreamSound = (() => {
  const FILE_MB_MAX = 300;
  const MARKS_MAX = 3000; // pieces whose time is remembered: the longest segment, several times

  return class {
    constructor(say) {
      this.say = say;
      this.name = "speech";
      this.samples = 0;
      this.marks = []; // [second that a piece ends at, when it was taken in]
    }
    get rate() {
      return this.context ? this.context.sampleRate : 0;
    }
    get seconds() {
      return this.samples / (this.rate || 1);
    }
    // Of `file`, or of the microphone without one: each piece goes to `told`; `ended`: the file is over. An Error has a
    // sentence for a person.
    async open(file, told, ended) {
      const insecure = () => new Error(this.say("insecure"));
      if (!file && !(navigator.mediaDevices && window.AudioWorkletNode)) throw insecure();
      const context = (this.context = new AudioContext());
      if (!context.audioWorklet) throw insecure();
      await context.resume();
      await context.audioWorklet.addModule("/static/microphone.js");
      await (file ? this.play(file, ended) : this.hear());
      this.node = new AudioWorkletNode(context, "microphone");
      this.node.port.onmessage = ({ data }) => {
        this.samples += data.audio.byteLength / 2;
        this.marks.push([this.seconds, performance.now()]);
        if (this.marks.length > MARKS_MAX) this.marks.splice(0, MARKS_MAX / 2);
        told(data);
      };
    }
    async play(file, ended) {
      if (file.size > FILE_MB_MAX << 20) throw new Error(this.say("too_large", { file: file.name, most: FILE_MB_MAX }));
      try {
        const buffer = await this.context.decodeAudioData(await file.arrayBuffer());
        this.source = new AudioBufferSourceNode(this.context, { buffer });
      } catch (error) {
        throw new Error(this.say("no_sound", { file: file.name, why: error.message }));
      }
      this.source.onended = ended;
      this.source.connect(this.context.destination); // who plays a file hears it, too
      this.name = file.name.replace(/\.[^.]*$/, "");
    }
    async hear() {
      try {
        const audio = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
        this.stream = await navigator.mediaDevices.getUserMedia({ audio });
      } catch (error) {
        throw new Error(this.say("refused", { why: error.message }));
      }
      this.source = this.context.createMediaStreamSource(this.stream);
    }
    start() {
      this.source.connect(this.node).connect(this.context.destination); // silence: it only has to be pulled
      if (this.source.start) this.source.start();
    }
    // The last piece, which says so, comes now.
    finish() {
      this.node.port.postMessage("over");
    }
    // When the sound at this second of the session was taken in here, in ms.
    taken(seconds) {
      const mark = this.marks.find(([until]) => until >= seconds) || this.marks[this.marks.length - 1];
      return mark ? mark[1] - Math.max(0, mark[0] - seconds) * 1000 : NaN;
    }
    close() {
      if (this.stream) for (const track of this.stream.getTracks()) track.stop();
      if (this.context) this.context.close();
    }
  };
})();
