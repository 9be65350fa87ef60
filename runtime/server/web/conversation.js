// What was said: shown, kept in this browser, exported.

import { joined, toBase64, toWav } from "./sound.js";

const KEPT = "mimo-edge conversation";
const MOST = 200; // items that are kept

export class Conversation {
  #log;
  #items = [];
  #play;

  constructor(log, play) {
    this.#log = log;
    this.#play = play;
    for (const item of stored()) this.#show({ ...item, pieces: [] });
    if (this.#items.length) this.note("Before this page was opened. The model does not remember it.");
  }

  // A new item; `who` is user or assistant.
  add(who, text = "") {
    const item = { who, text, figures: null, at: new Date().toISOString(), pieces: [] };
    this.#show(item);
    item.element.setAttribute("aria-busy", "true");
    return item;
  }

  append(item, text) {
    item.text += text;
    this.update(item);
  }

  update(item) {
    const [, words, figures, again] = item.element.children;
    words.textContent = item.text || (item.pieces.length ? "" : "…");
    figures.textContent = item.figures ?? "";
    again.hidden = !item.pieces.length;
    const near = this.#log.scrollHeight - this.#log.scrollTop - this.#log.clientHeight < 160;
    if (near) this.#log.scrollTop = this.#log.scrollHeight;
  }

  // Nothing more comes of it.
  end(item) {
    item.element.removeAttribute("aria-busy");
    this.update(item);
    this.#keep();
  }

  note(text, wrong = false) {
    const note = document.createElement("p");
    note.className = wrong ? "note wrong" : "note";
    note.textContent = text;
    this.#log.append(note);
    this.#log.scrollTop = this.#log.scrollHeight;
  }

  clear() {
    this.#items = [];
    this.#log.replaceChildren();
    this.#keep();
  }

  // A file with all words and sounds.
  exported() {
    const items = this.#items.map(({ who, text, figures, at, pieces }) => {
      const wav = pieces.length ? toBase64(toWav(joined(pieces))) : null;
      return { who, text, figures, at, wav };
    });
    return new Blob([JSON.stringify({ items }, null, 1)], { type: "application/json" });
  }

  #show(item) {
    const element = document.createElement("article");
    element.className = item.who;
    const [who, words, figures, again] = ["h2", "p", "p", "button"].map((name) =>
      document.createElement(name),
    );
    who.textContent = item.who === "user" ? "You" : "Model";
    figures.className = "figures";
    again.type = "button";
    again.textContent = "Play again";
    again.onclick = () => this.#play(joined(item.pieces));
    element.append(who, words, figures, again);
    item.element = element;
    this.#items.push(item);
    this.#log.append(element);
    this.#log.scrollTop = this.#log.scrollHeight;
    this.update(item);
  }

  #keep() {
    const kept = this.#items.slice(-MOST).map(({ who, text, figures, at }) => ({ who, text, figures, at }));
    try {
      localStorage.setItem(KEPT, JSON.stringify(kept));
    } catch {
      // full, or not allowed: it lasts as long as the page
    }
  }
}

function stored() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEPT) ?? "[]");
    return kept.filter(({ who, text }) => typeof who === "string" && typeof text === "string");
  } catch {
    return [];
  }
}
