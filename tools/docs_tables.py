"""Writes the generated tables of docs/ and README.md, each between two markers.

They come from what the built package reports about itself, and from the newest record in benches/record.

`python tools/docs_tables.py` rewrites them; with `--check` it changes nothing and fails if it would.
"""

import pathlib
import sys

import bench_record
import error_examples
import exlora
from exlora import _exlora

ROOT = pathlib.Path(__file__).resolve().parents[1]


def error_codes() -> str:
    """One row per code, in catalog order, with a message that was really raised."""
    rows = [
        f"| `{code['code']}` | {code['summary']} | {code['remedy']} | {cell(error_examples.example(code['code']))} |"
        for code in exlora.error_codes()
    ]
    return "\n".join(["| code | meaning | what usually helps | example |", "| --- | --- | --- | --- |", *rows])


def cell(text: str) -> str:
    """Text as code in a table cell; it may contain bars, and has no backticks."""
    return f"`{text.replace('|', chr(92) + '|')}`" if text else ""


def peft_features() -> str:
    """One row per feature, the fields of adapter_config.json first."""
    rows = [f"| {_name(row)} | {_verdict(row)} | {row['note']} |" for row in _exlora.peft_features()]
    return "\n".join(["| PEFT feature | supported | notes |", "| --- | --- | --- |", *rows])


def _name(row: dict[str, str]) -> str:
    """A field as code, anything else as plain text."""
    return f"`{row['feature']}`" if row["feature"].isidentifier() else row["feature"]


def _verdict(row: dict[str, str]) -> str:
    return f"refused: `{row['code']}`" if row["code"] else row["verdict"]


def architectures() -> str:
    """One row per architecture, in the order of the families' table."""
    rows = [f"| `{row['name']}` | {row['models']} |" for row in _exlora.architectures()]
    return "\n".join(["| architecture | models |", "| --- | --- |", *rows])


def performance() -> str:
    """The newest record."""
    return bench_record.summary(bench_record.read(bench_record.newest()))


# File name, the name in its marker, and what writes the table.
TABLES = [
    ("docs/errors.md", "error codes", error_codes),
    ("docs/peft.md", "peft features", peft_features),
    ("README.md", "architectures", architectures),
    ("README.md", "performance", performance),
]


def render(text: str, name: str, table: str) -> str:
    """The document with its generated table replaced."""
    head, begin, rest = text.partition(f"<!-- generated: {name} -->\n")
    _, end, tail = rest.partition("\n<!-- end of generated -->")
    if not end:
        sys.exit(f"no section is marked as generated: {name}")
    return f"{head}{begin}\n{table}\n{end}{tail}"


def main() -> None:
    """Rewrites the tables, or checks them."""
    is_check = sys.argv[1:] == ["--check"]
    for file, name, table in TABLES:
        path = ROOT / file
        before = path.read_text(encoding="utf-8")
        after = render(before, name, table())
        if is_check and after != before:
            sys.exit(f"{file} is out of date; run `make docs`")
        path.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
