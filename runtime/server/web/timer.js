// One answer: the time to its first sound, and its real-time factor.

import { RATE } from "./sound.js";

export class Timer {
  #started = performance.now();
  #first = null;
  #ended = null;
  #seconds = 0;

  sound(samples) {
    this.#first ??= performance.now() - this.#started;
    this.#seconds += samples / RATE;
  }

  end() {
    this.#ended = performance.now();
  }

  get first() {
    return this.#first === null ? "–" : `${Math.round(this.#first)} ms`;
  }

  // Seconds of work for a second of speech.
  get factor() {
    if (!this.#seconds) return "–";
    const took = (this.#ended ?? performance.now()) - this.#started;
    return (took / 1000 / this.#seconds).toFixed(2);
  }

  get text() {
    return this.#seconds ? `first sound ${this.first}, real-time factor ${this.factor}` : "";
  }
}
