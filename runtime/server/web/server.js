// The server: requests that stream, and the realtime connection.

export class Server {
  key = "";

  get #headers() {
    return this.key ? { Authorization: `Bearer ${this.key}` } : {};
  }

  async get(path) {
    return (await this.#checked(await fetch(path, { headers: this.#headers }))).json();
  }

  // A body that is an object is sent as JSON; the response's body comes in pieces.
  async post(path, body, signal) {
    const headers = { ...this.#headers };
    if (!(body instanceof FormData)) {
      headers["Content-Type"] = "application/json";
      body = JSON.stringify(body);
    }
    return this.#checked(await fetch(path, { method: "POST", headers, body, signal }));
  }

  async #checked(response) {
    if (response.ok) return response;
    const said = await response.json().catch(() => null);
    const error = new Error(said?.error?.message ?? `The server answers ${response.status}.`);
    error.status = response.status;
    throw error;
  }

  realtime() {
    const url = new URL("/v1/realtime", location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const names = this.key ? ["realtime", `openai-insecure-api-key.${this.key}`] : ["realtime"];
    return new WebSocket(url, names);
  }
}

// Pieces of a response's body.
export async function* pieces(response) {
  const reader = response.body.getReader();
  for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
    yield value;
  }
}

// The data of its server-sent events.
export async function* events(response) {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const piece of pieces(response)) {
    const parts = (rest + decoder.decode(piece, { stream: true })).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").find((line) => line.startsWith("data: "))?.slice(6);
      if (!data || data === "[DONE]") continue;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}
