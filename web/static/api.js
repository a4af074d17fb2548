// Talking to the server: the key, errors in words, server-sent events.

const KEY = "pikv-key";
const PATIENCE_MS = 10000;

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: value => value === "" ? sessionStorage.removeItem(KEY) : sessionStorage.setItem(KEY, value),
};

// What went wrong; status 0: the server did not answer.
export class Failure extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function words(reply) {
  try {
    return (await reply.json()).error?.message ?? `The server answered ${reply.status}.`;
  } catch {
    return `The server answered ${reply.status}.`;
  }
}

async function request(path, options) {
  const headers = { ...options.headers };
  if (key.get() !== "") headers.Authorization = "Bearer " + key.get();
  let reply;
  try {
    reply = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch (fault) {
    if (options.signal?.aborted && fault.name === "AbortError") throw fault;
    throw new Failure(0, "The server does not answer.");
  }
  if (!reply.ok) throw new Failure(reply.status, await words(reply));
  return reply;
}

// A GET that gives up, so that a hanging server is noticed.
async function ask(path, read) {
  const patience = AbortSignal.timeout(PATIENCE_MS);
  try {
    return await read(await request(path, { signal: patience }));
  } catch (fault) {
    if (fault instanceof Failure) throw fault;
    throw new Failure(0, "The server does not answer.");
  }
}

export const getText = path => ask(path, reply => reply.text());
export const getJson = path => ask(path, reply => reply.json());

// The documents of a stream, until [DONE].
export async function* stream(path, body, signal) {
  const reply = await request(path, {
    method: "POST", signal, body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    headers: { "Content-Type": "application/json" },
  });
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (fault) {
      if (signal.aborted) throw fault;
      throw new Failure(0, "The connection broke before the end of the text.");
    }
    if (piece.done) throw new Failure(0, "The connection ended before the end of the text.");
    const lines = (rest + piece.value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      if (line === "data: [DONE]") return;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Failure(500, event.error.message);
      yield event;
    }
  }
}
