// The dialog that shows a column's request as code.

import { curlSample, exloraSample, openaiSample } from "./code_samples.js";
import { setText } from "./elements.js";

/** The dialog over its elements in index.html. */
export class CodeDialog {
  #samples = {};

  constructor(dialog) {
    this.dialog = dialog;
    this.code = dialog.querySelector("code");
    this.message = dialog.querySelector("[role=status]");
    for (const radio of this.#radios()) radio.addEventListener("change", () => this.#show());
    dialog.querySelector("#copy-code").addEventListener("click", () => this.#copy());
    dialog.querySelector("#close-code").addEventListener("click", () => dialog.close());
  }

  /** Opens it for a request. `server` is `{origin, needsKey, modelPath, adapterPaths}`. */
  open(title, request, adapters, server) {
    setText(this.dialog.querySelector("h2"), `Code for ${title}`);
    this.#samples = {
      curl: curlSample(request, server.origin, server.needsKey),
      openai: openaiSample(request, server.origin, server.needsKey),
      exlora: exloraSample(request, adapters, server.modelPath, server.adapterPaths),
    };
    this.#show();
    this.dialog.showModal();
  }

  #radios() {
    return this.dialog.querySelectorAll("input[name=language]");
  }

  #show() {
    const chosen = [...this.#radios()].find((radio) => radio.checked).value;
    setText(this.code, this.#samples[chosen]);
    setText(this.message, "");
  }

  async #copy() {
    try {
      await navigator.clipboard.writeText(this.code.textContent);
      setText(this.message, "Copied.");
    } catch {
      // Only pages from https or this machine may write to the clipboard.
      getSelection().selectAllChildren(this.code);
      setText(this.message, "Selected: copy it with the keyboard.");
    }
  }
}
