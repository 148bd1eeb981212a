// Draws tokens per second of each adapter against time.

import { element, svgElement } from "./elements.js";
import { largestSeries, niceCeiling } from "./throughput.js";

const HEIGHT = 140;
const MARGIN = { left: 40, right: 8, top: 8, bottom: 20 };
// Colors have names in page.css; lines with the same color differ in their dashes.
const COLORS = 6;
const MAX_LINES = 12;
const DASHES = [null, "6 3", "2 3"];

/** Draws a history into `container`, and what the lines mean into `legend`. */
export function drawThroughput(history, { container, legend }) {
  const series = [...largestSeries(history.series(), MAX_LINES)];
  const width = Math.max(240, container.clientWidth);
  const end = history.readings.at(-1)?.seconds ?? 0;
  const top = niceCeiling(Math.max(0, ...series.flatMap(([, points]) => points.map(({ rate }) => rate))));
  const x = (seconds) => MARGIN.left + (1 - (end - seconds) / history.spanSeconds) * (width - MARGIN.left - MARGIN.right);
  const y = (rate) => MARGIN.top + (1 - rate / top) * (HEIGHT - MARGIN.top - MARGIN.bottom);
  container.replaceChildren(
    svgElement(
      "svg",
      { width, height: HEIGHT, role: "img", "aria-label": descriptionOf(series) },
      ...axes(top, history.spanSeconds / 60, width, end, x, y),
      ...series.map(([, points], i) => line(points, i, x, y, end - history.spanSeconds)),
    ),
  );
  legend.replaceChildren(...series.map(([name, points], i) => legendItem(name, points, i)));
}

function axes(top, minutes, width, end, x, y) {
  const rates = [0, top / 2, top].flatMap((rate) => [
    svgElement("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(rate), y2: y(rate) }),
    svgElement("text", { x: MARGIN.left - 6, y: y(rate) + 4, "text-anchor": "end" }, String(rate)),
  ]);
  const times = Array.from({ length: minutes }, (_, i) =>
    i === 0
      ? svgElement("text", { x: x(end), y: HEIGHT - 4, "text-anchor": "end" }, "now")
      : svgElement("text", { x: x(end - i * 60), y: HEIGHT - 4, "text-anchor": "middle" }, `−${i} min`),
  );
  return [...rates, ...times];
}

function line(points, i, x, y, start) {
  const shown = points.filter(({ seconds }) => seconds >= start);
  return svgElement("polyline", {
    class: `series color-${i % COLORS}`,
    "stroke-dasharray": DASHES[Math.floor(i / COLORS) % DASHES.length],
    points: shown.map(({ seconds, rate }) => `${x(seconds).toFixed(1)},${y(rate).toFixed(1)}`).join(" "),
  });
}

function legendItem(name, points, i) {
  const swatch = svgElement(
    "svg",
    { width: 20, height: 8, "aria-hidden": "true" },
    svgElement("polyline", {
      class: `series color-${i % COLORS}`,
      "stroke-dasharray": DASHES[Math.floor(i / COLORS) % DASHES.length],
      points: "0,4 20,4",
    }),
  );
  const rate = element("span", { class: "number" }, points.at(-1).rate.toFixed(1));
  return element("li", {}, swatch, element("span", { class: "name" }, name), rate);
}

function descriptionOf(series) {
  if (series.length === 0) return "Nothing was generated in the last minutes.";
  const rates = series.map(([name, points]) => `${name} ${points.at(-1).rate.toFixed(1)}`);
  return `Tokens per second now: ${rates.join(", ")}.`;
}
