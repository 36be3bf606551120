"""The tables of docs/data-sets.md, from the catalogue. `python -m tests.simulations.data.page` writes them anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedrho.simulations.data.catalogue import ENTRIES
from fedrho.simulations.data.entry import Entry
from fedrho.simulations.data.options import Option

PAGE = Path(__file__).parents[3] / "docs" / "data-sets.md"


def written(text: str) -> str:
    """The page with its tables as the catalogue has them."""
    for mark, table in (("data-sets", _sets), ("licences", _licences), ("options", _options)):
        before, _, rest = text.partition(f"<!-- {mark} -->")
        _, _, after = rest.partition(f"<!-- /{mark} -->")
        text = f"{before}<!-- {mark} -->\n\n{table()}\n\n<!-- /{mark} -->{after}"
    return text


def _table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (headings, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(headings), *lines[1:]])


def _sets() -> str:
    headings = ("data set", "what it is", "a device", "devices", "examples of devices", "held out", "models")
    return _table(headings, [_row(one) for one in ENTRIES.values()])


def _row(one: Entry) -> tuple[str, ...]:
    models = ", ".join(
        f"`{model}`" if "-" in model or model in ("characters", "words", "movies") else model for model in one.models
    )
    return (f"`{one.name}`", one.summary, one.device, one.devices, one.examples, one.held_out, models)


def _licences() -> str:
    headings = ("data set", "licence", "to be named", "source", "files")
    rows = [
        (f"`{one.name}`", one.licence.name, one.licence.attribution, _link(one.licence.source), _files(one))
        for one in ENTRIES.values()
    ]
    return _table(headings, rows)


def _link(source: str) -> str:
    return f"<{source}>" if source.startswith("http") else source


def _files(one: Entry) -> str:
    return "<br>".join(f"`{file.name}`" for file in one.files) or "none"


def _options() -> str:
    tables = [
        f"### `{one.name}`\n\n{_table(('option', 'default', 'allowed', 'meaning'), [_option(o) for o in one.options])}"
        for one in ENTRIES.values()
    ]
    return "\n\n".join(tables)


def _option(option: Option) -> tuple[str, ...]:
    return (f"`{option.name}`", option.default, option.allowed, option.meaning)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
