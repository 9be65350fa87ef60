// Plays pieces of sound one after the other, and knows how much of them was heard.

import { RATE } from "./sound.js";

const LEAD = 0.06; // seconds before the first piece

export class Player {
  #context = null;
  #nodes = new Set();
  #end = 0; // when the last piece ends, in the context's time
  #given = 0; // seconds since the last `begin`
  onchange = () => {};

  // A browser lets a page sound only after a gesture: call it in one.
  wake() {
    this.#context ??= new AudioContext({ sampleRate: RATE });
    return this.#context.resume();
  }

  get playing() {
    return this.#nodes.size > 0;
  }

  // A new answer: what was heard is counted from here.
  begin() {
    this.#given = 0;
  }

  push(samples) {
    if (!samples.length) return;
    this.wake();
    const context = this.#context;
    const buffer = context.createBuffer(1, samples.length, RATE);
    buffer.copyToChannel(samples, 0);
    const node = new AudioBufferSourceNode(context, { buffer });
    node.connect(context.destination);
    this.#end = Math.max(this.#end, context.currentTime + LEAD);
    node.start(this.#end);
    this.#end += buffer.duration;
    this.#given += buffer.duration;
    this.#nodes.add(node);
    node.onended = () => {
      this.#nodes.delete(node);
      this.onchange();
    };
    this.onchange();
  }

  // Seconds of the answer that were heard so far.
  get heard() {
    if (!this.#context) return 0;
    const left = Math.max(0, this.#end - this.#context.currentTime);
    return Math.max(0, this.#given - left);
  }

  stop() {
    for (const node of this.#nodes) node.stop();
    this.#nodes.clear();
    this.#end = 0;
    this.onchange();
  }
}
