// The microphone, as pieces of 100 ms at RATE.

import { RATE } from "./sound.js";

export class Microphone {
  #stream = null;
  #context = null;
  onpiece = () => {};

  get open() {
    return this.#stream !== null;
  }

  async start() {
    if (this.open) return;
    if (!navigator.mediaDevices) {
      throw new Error("Browsers lend the microphone to https pages and to this machine's own only.");
    }
    const audio = { channelCount: 1, echoCancellation: true, noiseSuppression: true };
    this.#stream = await navigator.mediaDevices.getUserMedia({ audio });
    try {
      await this.#connect(new AudioContext({ sampleRate: RATE }));
    } catch {
      await this.#connect(new AudioContext()); // some cannot resample a microphone
    }
  }

  async #connect(context) {
    this.#context = context;
    await context.audioWorklet.addModule("/web/recorder.js");
    const source = context.createMediaStreamSource(this.#stream);
    const recorder = new AudioWorkletNode(context, "recorder", { numberOfOutputs: 0 });
    recorder.port.onmessage = ({ data }) => this.onpiece(atRate(data, context.sampleRate));
    source.connect(recorder);
    await context.resume();
  }

  stop() {
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    this.#context?.close();
    this.#stream = this.#context = null;
  }
}

// The mean of the samples that each new one covers.
function atRate(samples, rate) {
  if (rate === RATE) return samples;
  const step = rate / RATE;
  const made = new Float32Array(Math.floor(samples.length / step));
  for (let i = 0; i < made.length; i++) {
    const first = Math.floor(i * step);
    const last = Math.max(first + 1, Math.floor((i + 1) * step));
    let sum = 0;
    for (let j = first; j < last; j++) sum += samples[j];
    made[i] = sum / (last - first);
  }
  return made;
}

// 0 to 1, of a piece.
export function loudness(samples) {
  let sum = 0;
  for (const sample of samples) sum += sample * sample;
  const decibels = 10 * Math.log10(sum / samples.length + 1e-9);
  return Math.max(0, Math.min(1, 1 + decibels / 60));
}
