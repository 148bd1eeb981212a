// A column's request, as the server takes it.

const NUMBERS = ["temperature", "max_tokens", "seed", "top_p", "top_k", "min_p", "repetition_penalty"];

/**
 * The request of a column: `{path, body}`, without what streaming adds.
 *
 * The body's `adapters` is a Map, since an object would bring names that look like numbers into an order of its own, and the
 * order of a mixture matters.
 */
export function requestOf(settings, adapters, baseModel) {
  const isOneAsItIs = adapters.length === 1 && adapters[0].weight === 1;
  const body = { model: isOneAsItIs ? adapters[0].name : baseModel };
  if (settings.mode === "chat") {
    body.messages = [{ role: "user", content: settings.prompt }];
    if (settings.system !== "") body.messages.unshift({ role: "system", content: settings.system });
  } else {
    body.prompt = settings.prompt;
  }
  if (adapters.length > 0 && !isOneAsItIs) body.adapters = new Map(adapters.map(({ name, weight }) => [name, weight]));
  for (const name of NUMBERS) {
    const text = settings.sampling[name].trim();
    if (text !== "" && Number.isFinite(Number(text))) body[name] = numberOf(text);
  }
  const stop = settings.sampling.stop.split("\n").filter((line) => line !== "");
  if (stop.length > 0) body.stop = stop;
  return { path: settings.mode === "chat" ? "v1/chat/completions" : "v1/completions", body };
}

/** The request with what streaming adds. */
export function streamed({ path, body }) {
  return { path, body: { ...body, stream: true, stream_options: { include_usage: true } } };
}

/** A number; one that a double would round, such as a large seed, keeps all its digits. */
function numberOf(text) {
  const number = Number(text);
  return Number.isInteger(number) && !Number.isSafeInteger(number) && /^-?\d+$/.test(text) ? BigInt(text) : number;
}

/** JSON of a value that may contain Maps, as ordered objects, and BigInts. `indent` spaces a level; without it one line. */
export function jsonText(value, indent = 0, depth = 0) {
  if (typeof value === "bigint") return String(value);
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const isList = Array.isArray(value);
  const entries = isList ? value : value instanceof Map ? [...value] : Object.entries(value);
  const items = entries.map((entry) =>
    isList ? jsonText(entry, indent, depth + 1) : `${JSON.stringify(entry[0])}: ${jsonText(entry[1], indent, depth + 1)}`,
  );
  const [open, close] = isList ? "[]" : "{}";
  const isFlat = indent === 0 || depth > 0;
  if (isFlat || items.length === 0) return open + items.join(", ") + close;
  const margin = " ".repeat(indent);
  return `${open}\n${items.map((item) => margin + item).join(",\n")}\n${close}`;
}
