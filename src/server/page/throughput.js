// Tokens per second of each adapter over the last minutes, from counters that are read again and again.

/** Counters of the last minutes. */
export class ThroughputHistory {
  /** Times are in seconds, on any clock that only moves forward. */
  constructor(spanSeconds = 300) {
    this.spanSeconds = spanSeconds;
    this.readings = [];
  }

  /** Adds a reading: each adapter's tokens so far. */
  add(seconds, tokensOf) {
    this.readings.push({ seconds, tokensOf });
    // One reading older than the span is kept, from which the first rate of the span is computed.
    while (this.readings.length > 2 && this.readings[1].seconds <= seconds - this.spanSeconds) this.readings.shift();
  }

  /** For each adapter that generated tokens within the span, its `{seconds, rate}` at each reading but the first. */
  series() {
    const names = new Set(this.readings.flatMap(({ tokensOf }) => [...tokensOf.keys()]));
    const found = new Map();
    for (const name of [...names].sort()) {
      const points = this.readings.slice(1).map((reading, i) => {
        const before = this.readings[i];
        const tokens = (reading.tokensOf.get(name) ?? 0) - (before.tokensOf.get(name) ?? 0);
        // A counter that went down is that of a server that was started again.
        return { seconds: reading.seconds, rate: Math.max(0, tokens) / (reading.seconds - before.seconds) };
      });
      if (points.some(({ rate }) => rate > 0)) found.set(name, points);
    }
    return found;
  }
}

/** At most `count` series: those with the most tokens, and the sum of all others. */
export function largestSeries(series, count) {
  if (series.size <= count) return series;
  const total = (points) => points.reduce((sum, { rate }) => sum + rate, 0);
  const names = [...series.keys()].sort((a, b) => total(series.get(b)) - total(series.get(a)));
  const kept = new Map(names.slice(0, count - 1).map((name) => [name, series.get(name)]));
  const others = names.slice(count - 1).map((name) => series.get(name));
  const sums = others[0].map(({ seconds }, i) => ({ seconds, rate: others.reduce((sum, points) => sum + points[i].rate, 0) }));
  return kept.set(`${others.length} others`, sums);
}

/** The smallest of 1, 2 or 5 times a power of ten that is not below `value`: the top of a readable axis. */
export function niceCeiling(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((factor) => factor * power).find((top) => top >= value * (1 - 1e-9));
}
