"""Plots a record of `tools/bench_record.py`: decoded tokens per second against distinct adapters in the batch.

`python tools/bench_plot.py` plots the newest record to docs/distinct_adapters.svg; needs matplotlib.
"""

import argparse
import pathlib

import bench_record
from matplotlib import pyplot

STATISTICS = ["median", "min", "max"]
COLORS = ["#1f6f8b", "#d1495b", "#66a182", "#edae49"]


def plot(record: pathlib.Path, image: pathlib.Path) -> None:
    """One line per batch size with the range of its rounds; the dashed line is the base model without adapters."""
    table = [row for row in bench_record.read(record) if row["scenario"] == "decode"]
    # Text stays text, and equal records give equal files.
    pyplot.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "exlora", "font.family": "sans-serif"})
    figure, axes = pyplot.subplots(figsize=(7.2, 3.9), layout="constrained")
    batches = sorted({int(row["batch"]) for row in table})
    ticks = sorted({int(row["distinct_adapters"]) for row in table})
    for batch, color in zip(batches, COLORS, strict=False):
        rows = sorted((row for row in table if int(row["batch"]) == batch), key=lambda r: int(r["distinct_adapters"]))
        x = [ticks.index(int(row["distinct_adapters"])) for row in rows]
        median, low, high = ([float(row[f"tokens_per_second_{name}"]) for row in rows] for name in STATISTICS)
        spread = [[m - a for m, a in zip(median, low, strict=True)], [b - m for m, b in zip(median, high, strict=True)]]
        axes.axhline(median[0], color=color, linestyle="--", linewidth=0.8)
        axes.errorbar(x, median, spread, color=color, marker="o", capsize=3, label=f"batch of {batch}")
    axes.set_xticks(range(len(ticks)), ["base only" if tick == 0 else str(tick) for tick in ticks])
    axes.set_xlabel("distinct adapters in the batch")
    axes.set_ylabel("decoded tokens per second, whole batch")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
    # Sorted by adapters, so the last row has some, and with them a rank.
    last = table[-1]
    model = f"{last['model']}, {last['format']}, adapters of rank {last['rank']}"
    machine = f"{last['cpu']}, {last['threads']} threads, {last['date']}"
    axes.set_title(f"{model}; {machine}", fontsize=8, loc="left")
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    """Plots the record named on the command line, or the newest one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=pathlib.Path, nargs="?")
    parser.add_argument("--out", type=pathlib.Path, default=bench_record.ROOT / "docs" / "distinct_adapters.svg")
    options = parser.parse_args()
    plot(options.record or bench_record.newest(), options.out)
    print(options.out)


if __name__ == "__main__":
    main()
