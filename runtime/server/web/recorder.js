// In the audio thread: samples of the microphone, 100 ms at a time.

class Recorder extends AudioWorkletProcessor {
  #size = Math.round(sampleRate / 10);
  #held = new Float32Array(this.#size);
  #count = 0;

  process([input]) {
    const samples = input[0];
    if (samples) {
      for (const sample of samples) {
        this.#held[this.#count++] = sample;
        if (this.#count === this.#size) {
          this.port.postMessage(this.#held);
          this.#held = new Float32Array(this.#size);
          this.#count = 0;
        }
      }
    }
    return true;
  }
}

registerProcessor("recorder", Recorder);
