// A picture of sound that moves on while it comes: time to the right, 0 to 8 kHz upwards.

import { RATE } from "./sound.js";

const SIZE = 512; // samples of one transform
const HOP = 240; // samples between two columns
const TOP = 8000; // Hz
const FLOOR = -90; // dB, black

export class Spectrogram {
  #canvas;
  #paint;
  #rest = new Float32Array(0);
  #window = Float32Array.from({ length: SIZE }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / SIZE));

  constructor(canvas) {
    this.#canvas = canvas;
    this.#paint = canvas.getContext("2d", { willReadFrequently: true });
  }

  push(samples) {
    const all = new Float32Array(this.#rest.length + samples.length);
    all.set(this.#rest);
    all.set(samples, this.#rest.length);
    const columns = Math.max(0, Math.floor((all.length - SIZE) / HOP) + 1);
    this.#rest = all.slice(columns * HOP);
    if (columns) this.#draw(Array.from({ length: columns }, (_, i) => this.#levels(all, i * HOP)));
  }

  #levels(samples, at) {
    const real = new Float32Array(SIZE);
    const imaginary = new Float32Array(SIZE);
    for (let i = 0; i < SIZE; i++) real[i] = samples[at + i] * this.#window[i];
    transform(real, imaginary);
    const levels = new Float32Array(Math.round((TOP / RATE) * SIZE));
    for (let k = 0; k < levels.length; k++) {
      const power = (real[k] ** 2 + imaginary[k] ** 2) / SIZE ** 2;
      levels[k] = Math.max(0, 1 - (10 * Math.log10(power + 1e-12)) / FLOOR);
    }
    return levels;
  }

  #draw(columns) {
    const { width, height } = this.#canvas;
    const shown = columns.slice(-width);
    this.#paint.drawImage(this.#canvas, -shown.length, 0);
    const image = this.#paint.createImageData(shown.length, height);
    shown.forEach((levels, x) => {
      for (let y = 0; y < height; y++) {
        const level = levels[Math.floor(((height - 1 - y) / height) * levels.length)];
        const at = 4 * (y * shown.length + x);
        image.data.set([255 * level ** 2, 235 * level, 60 + 150 * level * (1 - level), 255], at);
      }
    });
    this.#paint.putImageData(image, width - shown.length, 0);
  }
}

// Fast Fourier transform in place.
function transform(real, imaginary) {
  const size = real.length;
  for (let i = 1, j = 0; i < size; i++) {
    let bit = size >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) {
      [real[i], real[j]] = [real[j], real[i]];
      [imaginary[i], imaginary[j]] = [imaginary[j], imaginary[i]];
    }
  }
  for (let half = 1; half < size; half *= 2) {
    for (let k = 0; k < half; k++) {
      const angle = (-Math.PI * k) / half;
      const [c, s] = [Math.cos(angle), Math.sin(angle)];
      for (let i = k; i < size; i += 2 * half) {
        const j = i + half;
        const re = real[j] * c - imaginary[j] * s;
        const im = real[j] * s + imaginary[j] * c;
        real[j] = real[i] - re;
        imaginary[j] = imaginary[i] - im;
        real[i] += re;
        imaginary[i] += im;
      }
    }
  }
}
