// A column's request as code that a reader can paste. None contains a key: each reads the environment.

import { jsonText } from "./request.js";

// Fields that OpenAI's client has as keywords; the others travel in its `extra_body`.
const OPENAI_KEYWORDS = new Set(["model", "messages", "prompt", "temperature", "max_tokens", "seed", "top_p", "stop"]);

/** The request for a shell. */
export function curlSample({ path, body }, origin, needsKey) {
  const key = needsKey ? ' \\\n  -H "Authorization: Bearer $EXLORA_API_KEY"' : "";
  const url = shellText(new URL(path, origin).href);
  return `curl ${url}${key} \\\n  -H 'Content-Type: application/json' \\\n  -d ${shellText(jsonText(body, 2))}\n`;
}

/** The request for OpenAI's Python client. */
export function openaiSample({ path, body }, origin, needsKey) {
  const isChat = path.endsWith("chat/completions");
  const keywords = Object.entries(body).filter(([name]) => OPENAI_KEYWORDS.has(name));
  const extra = Object.entries(body).filter(([name]) => !OPENAI_KEYWORDS.has(name));
  if (extra.length > 0) keywords.push(["extra_body", new Map(extra)]);
  const key = needsKey ? 'os.environ["EXLORA_API_KEY"]' : '"none"';
  return (
    (needsKey ? "import os\n\n" : "") +
    `from openai import OpenAI\n\n` +
    `client = OpenAI(base_url=${pythonValue(new URL("v1", origin).href)}, api_key=${key})\n` +
    `${isChat ? "answer" : "completion"} = client.${isChat ? "chat.completions" : "completions"}.create(\n` +
    keywordLines(keywords) +
    `)\nprint(${isChat ? "answer.choices[0].message.content" : "completion.choices[0].text"})\n`
  );
}

/**
 * The request for exlora in Python, without a server.
 *
 * `modelPath` and `adapterPaths` (name to path) are folders as the server knows them.
 */
export function exloraSample({ body }, adapters, modelPath, adapterPaths) {
  const folders = adapters.map(({ name }) => [name, adapterPaths.get(name) ?? name]);
  const keywords = [["adapter", new Map(adapters.map(({ name, weight }) => [name, weight]))]];
  const names = { max_tokens: "max_new_tokens" };
  for (const [name, value] of Object.entries(body)) {
    if (!["model", "messages", "prompt", "adapters"].includes(name)) keywords.push([names[name] ?? name, value]);
  }
  if (adapters.length === 0) keywords.shift();
  const loaded = folders.length > 0 ? `, adapters=${pythonValue(new Map(folders))}` : "";
  return (
    `from exlora import Engine\n\n` +
    `engine = Engine(${pythonValue(modelPath)}${loaded})\n` +
    `completion = engine.generate(\n    ${pythonValue(body.messages ?? body.prompt)},\n${keywordLines(keywords)})\n` +
    `print(completion.text)\n`
  );
}

/** Text as one word of a POSIX shell: nothing is special between single quotes but the quote itself. */
export function shellText(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** Text, numbers, lists, objects and Maps as Python writes them: as JSON does, whose escapes are all Python's too. */
export function pythonValue(value) {
  return jsonText(value);
}

function keywordLines(keywords) {
  return keywords.map(([name, value]) => `    ${name}=${pythonValue(value)},\n`).join("");
}
