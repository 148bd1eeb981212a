"""Writes the generated sections of README.md, each between two markers, from what the built package says of itself.

`python tools/readme_tables.py README.md` rewrites them; with `--check` it changes nothing and fails if it would.
"""

import pathlib
import sys

import error_examples
import exlora
from exlora import _exlora


def error_codes() -> str:
    """One row a code, in the order of the catalog, with a message as it really comes."""
    rows = [
        f"| `{code['code']}` | {code['summary']} | {code['remedy']} | {cell(error_examples.example(code['code']))} |"
        for code in exlora.error_codes()
    ]
    head = ["| code | what it means | what usually helps | for example |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *rows])


def cell(text: str) -> str:
    """Text as code in a cell of a table; it may hold bars, and has no backticks."""
    return f"`{text.replace('|', chr(92) + '|')}`" if text else ""


def peft_features() -> str:
    """One row a feature, those of adapter_config.json first."""
    head = ["| PEFT feature | | what it means here |", "| --- | --- | --- |"]
    rows = [f"| {_name(row)} | {_verdict(row)} | {row['note']} |" for row in _exlora.peft_features()]
    return "\n".join([*head, *rows])


def _name(row: dict[str, str]) -> str:
    """A field in code's type, whatever else as it is."""
    return f"`{row['feature']}`" if row["feature"].isidentifier() else row["feature"]


def _verdict(row: dict[str, str]) -> str:
    return f"refused: `{row['code']}`" if row["code"] else row["verdict"]


SECTIONS = {"error codes": error_codes, "peft features": peft_features}


def render(text: str) -> str:
    """The document with every generated section written anew."""
    for name, table in SECTIONS.items():
        head, begin, rest = text.partition(f"<!-- generated: {name} -->\n")
        _, end, tail = rest.partition("\n<!-- end of generated -->")
        if not end:
            sys.exit(f"no section is marked as generated: {name}")
        text = f"{head}{begin}\n{table()}\n{end}{tail}"
    return text


def main() -> None:
    """Rewrites or checks the files named on the command line."""
    *options, name = sys.argv[1:]
    path = pathlib.Path(name)
    before = path.read_text(encoding="utf-8")
    after = render(before)
    if after == before:
        return
    if options == ["--check"]:
        sys.exit(f"{name} is out of date; run `make readme`")
    path.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
