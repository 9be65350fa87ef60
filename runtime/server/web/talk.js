// A conversation over /v1/realtime.

import { fromBase64, fromPcm, toBase64, toPcm } from "./sound.js";
import { Timer } from "./timer.js";

export class Talk {
  #server;
  #page; // conversation, sound(samples), figures(timer), player, busy(), failed(text)
  #socket = null;
  #opening = null;
  #session = {};
  #timer = new Timer();
  #answer = null; // that is being made, or was made last
  #users = new Map(); // item id -> item on the page

  constructor(server, page) {
    this.#server = server;
    this.#page = page;
  }

  get answering() {
    return this.#answer !== null && !this.#answer.done;
  }

  // Settings, which hold for the next connection too.
  configure(session) {
    this.#session = session;
    if (this.#socket?.readyState === WebSocket.OPEN) this.#send("session.update", { session });
  }

  async open() {
    this.#opening ??= this.#connect().then(() => this.configure(this.#session));
    await this.#opening;
  }

  #connect() {
    return new Promise((resolve, reject) => {
      const socket = this.#server.realtime();
      this.#socket = socket;
      socket.onmessage = ({ data }) => {
        if (this.#socket !== socket) return; // closed by us
        const event = JSON.parse(data);
        if (event.type === "session.created") resolve();
        this.#handlers[event.type]?.(event);
      };
      socket.onclose = () => {
        reject(new Error("The realtime connection was refused."));
        if (this.#socket === socket) this.#lost();
      };
    });
  }

  async type(text) {
    await this.open();
    this.interrupt();
    const item = this.#page.conversation.add("user", text);
    this.#page.conversation.end(item);
    const content = [{ type: "input_text", text }];
    this.#send("conversation.item.create", { item: { type: "message", role: "user", content } });
    this.#ask();
  }

  hear(samples) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return;
    this.#send("input_audio_buffer.append", { audio: toBase64(toPcm(samples)) });
  }

  forget() {
    this.#send("input_audio_buffer.clear");
  }

  // The end of a turn that was held by hand.
  commit() {
    this.#send("input_audio_buffer.commit");
    this.#ask();
  }

  // End the answer, and let the model forget what was not heard of it.
  interrupt() {
    const { player } = this.#page;
    const cut = player.playing;
    const heard = player.heard;
    player.stop();
    if (this.answering) this.#send("response.cancel");
    if (cut && this.#answer?.itemId) {
      const end = Math.round(1000 * heard);
      const place = { item_id: this.#answer.itemId, content_index: 0, audio_end_ms: end };
      this.#send("conversation.item.truncate", place);
    }
  }

  // Begin anew with the next turn.
  close() {
    const socket = this.#socket;
    this.#socket = this.#opening = this.#answer = null;
    socket?.close();
  }

  #ask() {
    this.#timer = new Timer();
    this.#send("response.create");
  }

  #send(type, content = {}) {
    this.#socket?.send(JSON.stringify({ type, ...content }));
  }

  #lost() {
    this.#socket = this.#opening = null;
    if (this.#answer && !this.#answer.done) this.#ended("broken off");
    this.#page.conversation.note("The connection ended. The next turn begins a new conversation.");
  }

  #ended(why) {
    const { item, timer } = this.#answer;
    this.#answer.done = true;
    timer.end();
    item.figures = [timer.text, why].filter(Boolean).join(" · ");
    this.#page.conversation.end(item);
    this.#page.figures(timer);
    this.#page.busy();
  }

  #words = ({ delta }) => this.#page.conversation.append(this.#answer.item, delta);

  #handlers = {
    "input_audio_buffer.speech_started": () => this.interrupt(),
    "input_audio_buffer.speech_stopped": () => {
      this.#timer = new Timer();
    },
    "input_audio_buffer.committed": ({ item_id }) => {
      this.#users.set(item_id, this.#page.conversation.add("user"));
    },
    "conversation.item.input_audio_transcription.completed": ({ item_id, transcript }) => {
      const item = this.#users.get(item_id);
      item.text = transcript;
      this.#page.conversation.end(item);
    },
    "conversation.item.input_audio_transcription.failed": ({ item_id }) => {
      const item = this.#users.get(item_id);
      item.text = "(speech)";
      this.#page.conversation.end(item);
    },
    "response.created": ({ response }) => {
      const item = this.#page.conversation.add("assistant");
      this.#answer = { id: response.id, item, timer: this.#timer, done: false };
      this.#page.player.begin();
      this.#page.busy();
    },
    "response.output_item.added": ({ item }) => {
      this.#answer.itemId = item.id;
    },
    "response.output_text.delta": this.#words,
    "response.output_audio_transcript.delta": this.#words,
    "response.output_audio.delta": ({ delta }) => {
      const samples = fromPcm(fromBase64(delta));
      this.#answer.timer.sound(samples.length);
      this.#answer.item.pieces.push(samples);
      this.#page.figures(this.#answer.timer);
      this.#page.sound(samples);
    },
    "response.done": ({ response }) => {
      const { status, status_details: details } = response;
      if (status === "failed") this.#page.failed(details.error.message);
      this.#ended({ cancelled: "interrupted", incomplete: "cut off", failed: "failed" }[status]);
    },
    error: ({ error }) => {
      // what we end may have ended by itself meanwhile
      const late = ["response_cancel_not_active", "item_not_found"];
      if (!late.includes(error.code)) this.#page.failed(error.message);
    },
  };
}
