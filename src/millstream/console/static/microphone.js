// Runs on the thread of audio: what a microphone or a file gives, mixed to one channel, in pieces of 40 ms of PCM16.
"use strict";
class Microphone extends AudioWorkletProcessor {
  constructor() {
    super();
    this.piece = new Int16Array(Math.round(sampleRate * 0.04));
    this.full = 0;
    this.peak = 0;
    this.over = false;
    this.port.onmessage = () => {
      this.over = true; // of this piece, too, what is there is said
      this.tell();
    };
  }
  tell() {
    const audio = this.piece.slice(0, this.full).buffer;
    this.port.postMessage({ audio, peak: this.peak, over: this.over }, [audio]);
    this.full = this.peak = 0;
  }
  process([channels]) {
    if (this.over) return false;
    if (!channels.length) return true;
    for (let at = 0; at < channels[0].length; at++) {
      let sum = 0;
      for (const channel of channels) sum += channel[at];
      const value = Math.max(-1, Math.min(1, sum / channels.length));
      this.peak = Math.max(this.peak, Math.abs(value));
      this.piece[this.full++] = Math.round(value * 32767);
      if (this.full === this.piece.length) this.tell();
    }
    return true;
  }
}
registerProcessor("microphone", Microphone);
