// Server-sent events: the form in which a completion is streamed.

/** Splits text that arrives in pieces into events. */
export class EventParser {
  #rest = "";

  /** The data of each event that this piece completes. */
  push(piece) {
    this.#rest += piece;
    const events = this.#rest.split(/\r?\n\r?\n/);
    this.#rest = events.pop();
    return events.map(dataOf).filter((data) => data !== null);
  }
}

/** The lines `data:` of an event, joined; null for an event without any, such as a comment that keeps a connection open. */
function dataOf(event) {
  const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
  return lines.length ? lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n") : null;
}
