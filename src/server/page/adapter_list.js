// The adapters: which are resident, which are picked, and with what weight.

import { bytesText, element, setText } from "./elements.js";

// With fewer adapters a filter only takes space.
const FILTER_FROM = 8;

/** The table of adapters. `onChange()` is called when a pick or a weight changes, `onUnload(name)` by the buttons. */
export class AdapterList {
  #rows = new Map();
  // Names in the order in which they were picked, which is that of the mixture.
  #picked = [];
  // Names that the server knows: those that are resident, and those that it loads when a request names them.
  #known = new Set();

  constructor({ table, summary, filter }, { onChange, onUnload }) {
    Object.assign(this, { table, summary, filter, onChange, onUnload });
    filter.addEventListener("input", () => this.#applyFilter());
  }

  /** The picked adapters, `{name, weight}` each. */
  picked() {
    return this.#picked.map((name) => ({ name, weight: this.#rows.get(name).weight }));
  }

  /** Picks these adapters and no others. */
  setPicked(adapters) {
    this.#picked = adapters.map(({ name }) => name);
    for (const { name, weight } of adapters) {
      this.#rowOf(name).setWeight(weight);
    }
    for (const row of this.#rows.values()) row.setPicked(this.#picked.includes(row.name));
    this.#arrange();
  }

  /** Shows what the server has: the answer of `GET /v1/adapters`. */
  show({ data, available, bytes, max_bytes }) {
    const resident = new Map(data.filter((adapter) => adapter.resident).map((adapter) => [adapter.name, adapter]));
    this.#known = new Set([...data.map(({ name }) => name), ...available]);
    for (const name of this.#known) this.#rowOf(name);
    for (const row of this.#rows.values()) row.show(resident.get(row.name) ?? null, this.#known.has(row.name));
    setText(this.summary, `${resident.size} resident, ${bytesText(bytes)} of ${bytesText(max_bytes)}`);
    this.#arrange();
  }

  /** The folder of each adapter that the server named one for. */
  paths() {
    const known = [...this.#rows.values()].filter((row) => row.resident?.path);
    return new Map(known.map((row) => [row.name, row.resident.path]));
  }

  #rowOf(name) {
    if (!this.#rows.has(name)) {
      this.#rows.set(name, new AdapterRow(name, (row, isPicked) => this.#pick(row, isPicked), this.onChange, this.onUnload));
    }
    return this.#rows.get(name);
  }

  #pick(row, isPicked) {
    this.#picked = this.#picked.filter((name) => name !== row.name);
    if (isPicked) this.#picked.push(row.name);
    row.setPicked(isPicked);
    this.onChange();
  }

  /** Puts the rows in order, without touching those that are in place: moving one would take the focus from it. */
  #arrange() {
    for (const row of this.#rows.values()) {
      if (!this.#known.has(row.name) && !this.#picked.includes(row.name)) {
        row.element.remove();
        this.#rows.delete(row.name);
      }
    }
    const names = [...this.#rows.keys()].sort((a, b) => a.localeCompare(b));
    names.forEach((name, i) => {
      const { element } = this.#rows.get(name);
      const inPlace = this.table.tBodies[i] ?? null;
      if (inPlace !== element) this.table.insertBefore(element, inPlace);
    });
    this.filter.hidden = names.length < FILTER_FROM;
    this.#applyFilter();
  }

  #applyFilter() {
    const wanted = this.filter.hidden ? "" : this.filter.value.trim().toLowerCase();
    for (const row of this.#rows.values()) {
      row.element.hidden = !row.name.toLowerCase().includes(wanted) && !this.#picked.includes(row.name);
    }
  }
}

class AdapterRow {
  #checkbox = element("input", { type: "checkbox" });
  #slider = element("input", { type: "range", min: "0", max: "2", step: "0.05" });
  #number = element("input", { type: "number", step: "any", required: "" });
  #detail = element("span", { class: "detail" });
  #weights = element(
    "tr",
    { class: "weights" },
    element("td", { colspan: "5" }, element("div", {}, this.#slider, this.#number, this.#detail)),
  );
  #rank = element("td", { class: "number" });
  #bytes = element("td", { class: "number" });
  #leases = element("td", { class: "number" });
  #unload = element("button", { type: "button", class: "quiet" }, "Unload");

  constructor(name, onPick, onChange, onUnload) {
    this.name = name;
    this.resident = null;
    this.#checkbox.addEventListener("change", () => onPick(this, this.#checkbox.checked));
    this.#slider.setAttribute("aria-label", `Weight of ${name}`);
    this.#number.setAttribute("aria-label", `Weight of ${name}, as a number`);
    this.#unload.setAttribute("aria-label", `Unload ${name}`);
    this.#slider.addEventListener("input", () => {
      this.#number.value = this.#slider.value;
      onChange();
    });
    this.#number.addEventListener("input", () => {
      this.#slider.value = this.#number.value;
      onChange();
    });
    this.#unload.addEventListener("click", () => onUnload(name));
    const choice = element("label", { class: "choice" }, this.#checkbox, element("span", { class: "name" }, name));
    // A second row has the full width for the slider.
    this.element = element(
      "tbody",
      {},
      element(
        "tr",
        {},
        element("th", { scope: "row" }, choice),
        this.#rank,
        this.#bytes,
        this.#leases,
        element("td", {}, this.#unload),
      ),
      this.#weights,
    );
    this.setWeight(1);
    this.setPicked(false);
  }

  /** The weight; 1 while the field holds no number. */
  get weight() {
    const weight = this.#number.valueAsNumber;
    return Number.isFinite(weight) ? weight : 1;
  }

  setWeight(weight) {
    this.#number.value = String(weight);
    this.#slider.value = String(weight);
  }

  setPicked(isPicked) {
    this.#checkbox.checked = isPicked;
    this.#weights.hidden = !isPicked;
  }

  /** Shows the adapter as it is resident, or null for one that is not. */
  show(adapter, isKnown) {
    this.resident = adapter;
    setText(this.#rank, adapter ? String(adapter.rank) : "–");
    setText(this.#bytes, adapter ? bytesText(adapter.bytes) : "–");
    setText(this.#leases, adapter ? String(adapter.leases) : "–");
    this.#unload.hidden = adapter === null;
    const uses = adapter?.hits === 1 ? "used once" : `used ${adapter?.hits ?? 0} times`;
    const pin = adapter?.pinned ? ", pinned" : "";
    const notResident = isKnown ? "loaded when it is first used" : "the server has no adapter of this name";
    setText(this.#detail, adapter ? `generation ${adapter.generation}, ${uses}${pin}` : notResident);
    this.element.classList.toggle("away", adapter === null);
  }
}
