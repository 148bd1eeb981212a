// The text in which a server reports its metrics.

const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?$/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;
const ESCAPES = { n: "\n", '"': '"', "\\": "\\" };

/** The samples of one metric: `{labels: Map, value}` each. */
export function samplesOf(text, metric) {
  const found = [];
  for (const line of text.split("\n")) {
    const match = SAMPLE.exec(line);
    if (match === null || match[1] !== metric) continue;
    const labels = new Map([...(match[2] ?? "").matchAll(LABEL)].map(([, name, value]) => [name, unescape(value)]));
    found.push({ labels, value: Number(match[3]) });
  }
  return found;
}

function unescape(text) {
  return text.replace(/\\(.)/g, (_, letter) => ESCAPES[letter] ?? letter);
}
