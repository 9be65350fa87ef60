// The tasks that are one request each.

import { events, pieces } from "./server.js";
import { fromPcm, joined, toBase64, toWav } from "./sound.js";
import { Timer } from "./timer.js";

// A text is read aloud.
export async function read(server, page, { input, voice, style, seed }, signal) {
  const user = page.conversation.add("user", input);
  page.conversation.end(user);
  const item = page.conversation.add("assistant", "");
  const timer = new Timer();
  page.player.begin();
  try {
    const body = { input, voice, response_format: "pcm" };
    if (style) body.instructions = style;
    if (seed !== null) body.seed = seed;
    const response = await server.post("/v1/audio/speech", body, signal);
    let rest = new Uint8Array(0);
    for await (const piece of pieces(response)) {
      const bytes = new Uint8Array([...rest, ...piece]);
      const whole = bytes.length & ~1;
      rest = bytes.slice(whole);
      const samples = fromPcm(bytes.subarray(0, whole));
      timer.sound(samples.length);
      item.pieces.push(samples);
      page.figures(timer);
      page.sound(samples);
    }
  } finally {
    timer.end();
    item.text = item.pieces.length ? "(speech)" : "(nothing)";
    item.figures = timer.text;
    page.figures(timer);
    page.conversation.end(item);
  }
}

// What is said in a recording.
export async function transcribe(server, page, recording, signal) {
  const form = new FormData();
  form.append("file", recording.file);
  form.append("stream", "true");
  await answered(page, recording, "", async (item) => {
    const response = await server.post("/v1/audio/transcriptions", form, signal);
    for await (const event of events(response)) {
      if (event.type === "transcript.text.delta") page.conversation.append(item, event.delta);
    }
  });
}

// A question about a recording.
export async function understand(server, page, recording, { question, seed }, signal) {
  const data = toBase64(new Uint8Array(await recording.file.arrayBuffer()));
  const content = [
    { type: "input_audio", input_audio: { data } },
    { type: "text", text: question },
  ];
  const body = { messages: [{ role: "user", content }], stream: true };
  if (seed !== null) body.seed = seed;
  await answered(page, recording, question, async (item) => {
    const response = await server.post("/v1/chat/completions", body, signal);
    for await (const event of events(response)) {
      page.conversation.append(item, event.choices[0]?.delta.content ?? "");
    }
  });
}

// A recording: of the microphone, in pieces, or a file that was chosen.
export function recorded(samples) {
  const file = new File([toWav(joined(samples))], "recording.wav", { type: "audio/wav" });
  return { file, pieces: samples };
}

async function answered(page, recording, question, ask) {
  const user = page.conversation.add("user", question || "(recording)");
  user.pieces = recording.pieces ?? [];
  page.conversation.end(user);
  const item = page.conversation.add("assistant");
  try {
    await ask(item);
  } finally {
    item.text ||= "(nothing)";
    page.conversation.end(item);
  }
}
