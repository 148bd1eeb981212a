// One column: a request, its text as it streams, and how fast it came.

import { element, setText } from "./elements.js";
import { streamCompletion } from "./server.js";
import { compareWords } from "./word_diff.js";

let columnCount = 0;

export class Column {
  #text = element("div", { class: "text", tabindex: "0" });
  #title = element("h3", { id: `column-${(columnCount += 1)}` });
  #note = element("p", { class: "note" });
  #figures = { first: element("dd"), rate: element("dd"), tokens: element("dd"), end: element("dd") };
  // The title of the run that the text is from; null before the first.
  #ranAs = null;

  /** `showCode(column)` is called by the button beside the title. */
  constructor(id, showCode) {
    this.id = id;
    this.state = "idle";
    this.output = "";
    this.codeButton = element("button", { type: "button", class: "quiet" }, "Code");
    this.codeButton.addEventListener("click", () => showCode(this));
    const figure = (label, value) => element("div", {}, element("dt", {}, label), value);
    this.element = element(
      "article",
      { class: "column", "aria-labelledby": this.#title.id },
      element("header", {}, this.#title, this.codeButton),
      element(
        "dl",
        {},
        figure("First token", this.#figures.first),
        figure("Tokens/s", this.#figures.rate),
        figure("Tokens", this.#figures.tokens),
        figure("End", this.#figures.end),
      ),
      this.#text,
      this.#note,
    );
    this.#text.setAttribute("aria-labelledby", this.#title.id);
    this.#text.setAttribute("role", "group");
    this.#showFigures({});
  }

  /** What the column asks for from now on; a text of an earlier run stays, and says so. */
  describe(title, adapters) {
    this.title = title;
    this.adapters = adapters;
    setText(this.#title, title);
    this.#title.title = title;
    this.codeButton.setAttribute("aria-label", `Code for ${title}`);
    this.#showNote();
  }

  /** Empties the column for a run that begins soon. */
  prepare() {
    this.#ranAs = this.title;
    this.output = "";
    this.error = null;
    this.#text.replaceChildren();
    this.#showFigures({});
    this.#enter("waiting");
  }

  /** Streams the answer to a request. Ends without an exception; `state` says how. */
  async run(request, signal) {
    this.#enter("running");
    const progress = { start: performance.now(), first: null, last: null, pieces: 0, tokens: null, finishReason: null };
    const node = document.createTextNode("");
    this.#text.replaceChildren(node);
    let frame = null;
    const show = () => {
      frame = null;
      this.#append(node, this.output.slice(node.length));
      this.#showFigures(progress);
    };
    try {
      for await (const piece of streamCompletion(request, signal)) {
        if (piece.text !== "") {
          progress.last = performance.now();
          progress.first ??= progress.last;
          progress.pieces += 1;
          this.output += piece.text;
        }
        progress.tokens = piece.tokens ?? progress.tokens;
        progress.finishReason = piece.finishReason ?? progress.finishReason;
        // Once a frame: a layout for each of hundreds of tokens a second would leave no time for keys.
        frame ??= requestAnimationFrame(show);
      }
      this.#enter("done");
    } catch (error) {
      this.error = error;
      this.#enter(error.name === "AbortError" ? "stopped" : "failed");
      progress.finishReason = this.state;
    }
    if (frame !== null) cancelAnimationFrame(frame);
    show();
  }

  /** A run that was stopped before this column began. */
  cancel() {
    this.#enter("stopped");
  }

  /** Marks the words that `base` does not have; null shows the text as it is. */
  showDifference(base) {
    const compared = base === null ? null : compareWords(base, this.output);
    this.#difference = base === null ? null : compared;
    this.#isTooLong = base !== null && compared === null;
    const pieces = compared?.pieces ?? [{ text: this.output, differs: false }];
    this.#text.replaceChildren(...pieces.map(({ text, differs }) => (differs ? element("mark", {}, text) : text)));
    this.#showNote();
  }

  #difference = null;
  #isTooLong = false;

  #enter(state) {
    this.state = state;
    this.#difference = null;
    this.#isTooLong = false;
    this.element.dataset.state = state;
    this.element.setAttribute("aria-busy", String(state === "running" || state === "waiting"));
    this.#showNote();
  }

  #append(node, piece) {
    const isAtEnd = this.#text.scrollHeight - this.#text.scrollTop - this.#text.clientHeight < 8;
    node.appendData(piece);
    if (isAtEnd) this.#text.scrollTop = this.#text.scrollHeight;
  }

  #showFigures({ start, first = null, last, pieces = 0, tokens: exact = null, finishReason = null }) {
    // Until the server says how many tokens there were, a piece counts as one.
    const tokens = exact ?? pieces;
    const about = exact === null ? "~" : "";
    const seconds = first === null ? 0 : (last - first) / 1000;
    const rate = (tokens - 1) / seconds;
    setText(this.#figures.first, first === null ? "–" : `${Math.round(first - start)} ms`);
    // The first token is the prompt's time; the rate is that of the tokens after it.
    setText(this.#figures.rate, seconds > 0 && tokens > 1 ? about + rate.toFixed(rate < 100 ? 1 : 0) : "–");
    setText(this.#figures.tokens, tokens ? about + tokens : "–");
    setText(this.#figures.end, finishReason ?? "–");
  }

  #showNote() {
    const notes = [];
    if (this.state === "failed") notes.push(this.error.message);
    if (this.state === "waiting") notes.push("Waiting for another column to end.");
    if (this.#ranAs !== null && this.#ranAs !== this.title) notes.push(`This text is from ${this.#ranAs}.`);
    if (this.#isTooLong) notes.push("The texts are too long to compare.");
    if (this.#difference) notes.push(`${this.#difference.differing} of ${this.#difference.words} words differ from the base.`);
    setText(this.#note, notes.join(" "));
  }
}
