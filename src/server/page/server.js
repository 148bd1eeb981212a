// The server's routes, and its errors in plain words.

import { EventParser } from "./event_stream.js";
import { key } from "./keys.js";
import { jsonText, streamed } from "./request.js";

/** Where the routes begin: the page may be served below a path. */
export const ORIGIN = new URL(".", document.baseURI).href;

/** An answer that is an error. `status` is 0 where there was no answer. */
export class ServerError extends Error {
  constructor(message, status, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Sends a request with the key of a kind (`api` or `admin`, if there is one) and returns the response. */
export async function call(path, { body, signal, keyKind = "api" } = {}) {
  const headers = {};
  if (key(keyKind) !== "") headers.Authorization = `Bearer ${key(keyKind)}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    const method = body === undefined ? "GET" : "POST";
    const text = body === undefined ? undefined : jsonText(body);
    response = await fetch(new URL(path, ORIGIN), { method, headers, body: text, signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(`The server at ${ORIGIN} does not answer. Is it running?`, 0);
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

/** The JSON that a route answers with. */
export async function getJson(path, options) {
  return (await call(path, options)).json();
}

/** The pieces of a completion as they arrive: `{text, finishReason, tokens}`; what a piece doesn't bring is null. */
export async function* streamCompletion(request, signal) {
  const { path, body } = streamed(request);
  const response = await call(path, { body, signal });
  const parser = new EventParser();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    let read;
    try {
      read = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServerError("The connection broke before the text was complete.", 0);
    }
    if (read.done) throw new ServerError("The server ended the text before it was complete.", 0);
    for (const data of parser.push(read.value)) {
      if (data === "[DONE]") return;
      yield pieceOf(JSON.parse(data));
    }
  }
}

function pieceOf(event) {
  if (event.error) throw new ServerError(event.error.message, 200, event.error.code);
  const choice = event.choices?.[0];
  return {
    text: choice?.delta?.content ?? choice?.text ?? "",
    finishReason: choice?.finish_reason ?? null,
    tokens: event.usage?.completion_tokens ?? null,
  };
}

async function errorOf(response) {
  const { message, code } = (await response.json().catch(() => null))?.error ?? {};
  const seconds = response.headers.get("Retry-After");
  const words = {
    401: "The server asks for a key, or does not know the one given.",
    403: `The server refused this. ${message ?? ""}`.trim(),
    429: `The server has too many requests. ${seconds ? `Try again in ${seconds} s.` : "Try again soon."}`,
  };
  return new ServerError(words[response.status] ?? message ?? `The server answered ${response.status}.`, response.status, code);
}
