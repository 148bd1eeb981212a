"""The records of `tools/bench_record.py` and the plot made from them."""

import csv

import bench_record
import pytest


def run(batch, adapters, base, lora):
    speed = {"prefill_tps": 10.0, "decode_tps": 0.0}
    return {
        "batch": batch,
        "distinct_adapters": adapters,
        "max_rank": 16,
        "context": 32,
        "base": {**speed, "decode_tps": base},
        "lora": {**speed, "decode_tps": lora},
    }


RUNS = [run(8, 1, 100.0, 90.0), run(8, 8, 104.0, 80.0), run(8, 1, 96.0, 94.0), run(8, 8, 98.0, 82.0)]
COMMON = {
    "commit": "c0ffee",
    "date": "2026-01-01",
    "cpu": "cpu",
    "threads": "2",
    "model": "m",
    "format": "f",
    "loadavg": 0.0,
}


def test_a_record_has_medians_and_ranges_and_pools_the_base_of_all_runs():
    table = {(row["scenario"], row["distinct_adapters"]): row for row in bench_record.rows(RUNS, COMMON)}
    assert set(table) == {(scenario, n) for scenario in ("prefill", "decode") for n in (0, 1, 8)}
    names = [f"tokens_per_second_{name}" for name in ("median", "min", "max")]
    at = {n: [table["decode", n][name] for name in names] + [table["decode", n]["rounds"]] for n in (0, 1, 8)}
    assert at == {0: [99.0, 96.0, 104.0, 4], 1: [92.0, 90.0, 94.0, 2], 8: [81.0, 80.0, 82.0, 2]}
    assert (table["decode", 8]["rank"], table["decode", 0]["rank"]) == (16, 0)
    assert (table["decode", 8]["context"], table["prefill", 8]["context"]) == (32, 0)


def test_a_record_is_written_with_every_column(tmp_path):
    path = tmp_path / "cpu" / "2026-01-01.csv"
    bench_record.write(path, bench_record.rows(RUNS, COMMON))
    with path.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == bench_record.COLUMNS
    assert all(value != "" for row in table for value in row.values())


@pytest.mark.parametrize(
    ("cpu", "folder"),
    [
        ("AMD EPYC 9R14", "amd-epyc-9r14"),
        ("Intel(R) Xeon(R) Platinum 8488C CPU @ 2.40GHz", "intel-xeon-platinum-8488c"),
    ],
)
def test_a_processors_name_becomes_a_folder(cpu, folder):
    assert bench_record.slug(cpu) == folder


@pytest.mark.parametrize(
    ("quantization", "name"),
    [
        ({"method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}, "gptq-4bit-g128"),
        ({"method": "gptq", "bits": 8, "group_size": None, "desc_act": False, "sym": True}, "gptq-8bit-column"),
        ({"method": "exl2", "widths": [5, 4], "group_sizes": [32]}, "exl2-4.2bpw"),
        (None, "float16"),
    ],
)
def test_a_weight_format_has_a_short_name(quantization, name):
    report = {"quantization": quantization, "bits_per_weight": 4.21, "dtypes": ["float16"]}
    assert bench_record.format_name(report) == name


def test_a_record_is_summarized_as_a_table(tmp_path):
    path = tmp_path / "record.csv"
    bench_record.write(path, bench_record.rows(RUNS, COMMON))
    lines = bench_record.summary(bench_record.read(path)).splitlines()
    assert lines[0] == "| tokens per second | base | 1 adapter | 8 adapters |"
    assert lines[2] == "| decode, batch of 8 | 99 | 92 | 81 |"
    assert lines[-1].startswith(
        "Medians of interleaved rounds (2 per number of adapters): m, f, rank 16, decode after 32"
    )


def test_a_record_becomes_a_plot(tmp_path):
    pytest.importorskip("matplotlib")
    import bench_plot

    bench_record.write(tmp_path / "record.csv", bench_record.rows(RUNS, COMMON))
    bench_plot.plot(tmp_path / "record.csv", tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    assert "distinct adapters in the batch" in text
    assert "batch of 8" in text
