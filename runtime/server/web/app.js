// The page: what is pressed and chosen, and what is shown.

import { Conversation } from "./conversation.js";
import { Microphone, loudness } from "./microphone.js";
import { Player } from "./player.js";
import { Server } from "./server.js";
import { Spectrogram } from "./spectrogram.js";
import { Talk } from "./talk.js";
import * as tasks from "./tasks.js";

const at = Object.fromEntries([...document.querySelectorAll("[id]")].map((e) => [e.id, e]));
const server = new Server();
const player = new Player();
const microphone = new Microphone();
const spectrogram = new Spectrogram(at.spectrogram);
const conversation = new Conversation(at.log, (samples) => {
  player.stop();
  page.sound(samples);
});
const page = {
  conversation,
  player,
  sound(samples) {
    player.push(samples);
    spectrogram.push(samples);
  },
  figures(timer) {
    at.first.value = timer.first;
    at.factor.value = timer.factor;
  },
  failed: (text) => conversation.note(text, true),
  busy: showBusy,
};
const talk = new Talk(server, page);
let request = null; // the AbortController of a task that goes on
let holding = false;
let recording = null; // pieces of the microphone, or a file, for tasks that ask for one

const talks = () => at.task.value === "talk" || at.task.value === "write";
const seed = () => (at.seed.value === "" ? null : Number(at.seed.value));

function session() {
  return {
    type: "realtime",
    output_modalities: [at.task.value === "write" ? "text" : "audio"],
    instructions: at.instructions.value,
    style: at.style.value || null,
    seed: seed(),
    audio: {
      input: {
        turn_detection: at.handsfree.checked ? { type: "server_vad" } : null,
        transcription: {},
      },
      output: { voice: at.voice.value },
    },
  };
}

function showBusy() {
  at.stop.disabled = !(player.playing || request || talk.answering);
}
player.onchange = showBusy;

function showTask() {
  const files = at.task.value === "transcribe" || at.task.value === "understand";
  at.filefield.hidden = !files;
  at.talk.hidden = at.task.value === "read";
  at.talk.textContent = files ? "Hold to record" : "Hold to talk";
  at.handsfree.parentElement.hidden = !talks();
  if (!talks() && at.handsfree.checked) at.handsfree.click();
  at.text.placeholder = {
    read: "Type what is read aloud",
    transcribe: "Record, or choose a file",
    understand: "Record or choose a file, then ask",
  }[at.task.value] ?? "Type, or speak";
  at.text.disabled = at.task.value === "transcribe";
  at.send.disabled = at.text.disabled;
}

function configure() {
  showTask();
  if (talks()) talk.configure(session());
}

// What a gesture begins; what goes wrong is said.
async function attempt(what) {
  try {
    await what();
  } catch (error) {
    if (error.name !== "AbortError") page.failed(error.message);
    if (error.status === 401) askForKey();
  }
  showBusy();
}

async function run(task) {
  stop();
  request = new AbortController();
  showBusy();
  try {
    await task(request.signal);
  } finally {
    request = null;
  }
}

async function submitted() {
  const text = at.text.value.trim();
  if (!text) return;
  player.wake();
  const settings = { input: text, question: text, voice: at.voice.value, style: at.style.value, seed: seed() };
  if (at.task.value === "understand" && !recording) {
    conversation.note("Record something or choose a file first.", true);
    return;
  }
  at.text.value = "";
  if (talks()) {
    talk.configure(session());
    await talk.type(text);
  } else if (at.task.value === "read") {
    await run((signal) => tasks.read(server, page, settings, signal));
  } else {
    await run((signal) => tasks.understand(server, page, recording, settings, signal));
  }
}

async function recordingReady(made) {
  recording = made;
  if (at.task.value === "transcribe") {
    await run((signal) => tasks.transcribe(server, page, made, signal));
  } else {
    conversation.note("The recording is ready: type a question about it.");
    at.text.focus();
  }
}

function stop() {
  request?.abort();
  if (talk.answering || player.playing) talk.interrupt();
  player.stop();
}

async function hold() {
  if (holding) return;
  holding = true;
  at.talk.setAttribute("aria-pressed", "true");
  player.wake();
  stop();
  if (talks()) {
    at.handsfree.checked = false;
    talk.configure(session());
    await talk.open();
    talk.forget();
  }
  recording = { pieces: [] };
  await microphone.start();
  if (!holding) microphone.stop(); // it was let go while the browser asked
}

async function letGo() {
  if (!holding) return;
  holding = false;
  at.talk.setAttribute("aria-pressed", "false");
  at.level.value = 0;
  if (!microphone.open) return;
  microphone.stop();
  if (talks()) talk.commit();
  else await recordingReady(tasks.recorded(recording.pieces));
}

async function listen() {
  if (!at.handsfree.checked) {
    microphone.stop();
    at.level.value = 0;
    talk.configure(session());
    return;
  }
  player.wake();
  talk.configure(session());
  try {
    await talk.open();
    await microphone.start();
  } catch (error) {
    at.handsfree.checked = false;
    throw error;
  }
}

microphone.onpiece = (samples) => {
  at.level.value = loudness(samples);
  if (talks()) talk.hear(samples);
  else recording?.pieces.push(samples);
};

function exported() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(conversation.exported());
  link.download = "conversation.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function askForKey() {
  at.keyfield.hidden = false;
  at.settings.open = true;
  at.key.focus();
}

async function arrive() {
  try {
    server.key = sessionStorage.getItem("mimo-edge key") ?? "";
    const { data } = await server.get("/v1/models");
    const voices = await server.get("/v1/audio/voices");
    const names = voices.data.map(({ name }) => new Option(name, name));
    at.voice.replaceChildren(new Option("the model's own", "default"), ...names);
    at.state.textContent = `${data[0].id}, ready`;
    at.state.classList.remove("wrong");
  } catch (error) {
    at.state.textContent = error.status === 401 ? "A key is needed" : error.message;
    at.state.classList.add("wrong");
    if (error.status === 401) askForKey();
  }
}

at.composer.addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(submitted);
});
at.text.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  attempt(submitted);
});
at.talk.addEventListener("pointerdown", (event) => {
  at.talk.setPointerCapture(event.pointerId);
  attempt(hold);
});
for (const name of ["pointerup", "pointercancel", "blur"]) {
  at.talk.addEventListener(name, () => attempt(letGo));
}
at.talk.addEventListener("keydown", (event) => {
  if (event.key === " " || event.key === "Enter") {
    event.preventDefault();
    if (!event.repeat) attempt(hold);
  }
});
at.talk.addEventListener("keyup", (event) => {
  if (event.key === " " || event.key === "Enter") attempt(letGo);
});
at.talk.addEventListener("contextmenu", (event) => event.preventDefault());
at.handsfree.addEventListener("change", () => attempt(listen));
at.file.addEventListener("change", () => {
  const [file] = at.file.files;
  if (file) attempt(() => recordingReady({ file }));
});
at.stop.addEventListener("click", stop);
at.export.addEventListener("click", exported);
at.clear.addEventListener("click", () => {
  stop();
  talk.close();
  conversation.clear();
});
at.key.addEventListener("change", () => {
  sessionStorage.setItem("mimo-edge key", at.key.value);
  talk.close();
  arrive();
});
for (const name of ["task", "voice", "style", "instructions", "seed"]) {
  at[name].addEventListener("change", configure);
}

showTask();
arrive();
