"""The commands about data sets for simulations: `fedrho data list`, `show` and `fetch`."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fedrho import completions, console
from fedrho.output_options import Json, Quiet
from fedrho.progress import Fetching
from fedrho.work import Work

if TYPE_CHECKING:
    from fedrho.simulations.data.cache import Cache
    from fedrho.simulations.data.download import RemoteFile
    from fedrho.simulations.data.entry import Entry
    from fedrho.simulations.data.facts import Facts

app = typer.Typer(
    help="Data sets for simulations: what there is, under which licence, and where it lies.\n\nExample: fedrho data show mnist",
    no_args_is_help=True,
)

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="A data set, as `fedrho data list` names it.", autocompletion=completions.of(completions.DATA_SETS)
    ),
]
Chosen = Annotated[
    list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="An option of the data set; counts what it then holds.")
]
Most = Annotated[int, typer.Option(min=1, max=65_534, help="How many words.")]


@app.command("list")
def list_all(json: Json = False) -> None:
    """List every data set: what a device is, how many there are, the licence, and whether its files are here.

    Example: fedrho data list
    """
    from fedrho.simulations.data.cache import Cache
    from fedrho.simulations.data.catalogue import ENTRIES

    cache = Cache()
    if json:
        console.print_json({"folder": str(cache.folder), "data_sets": [entry_values(one, cache) for one in ENTRIES.values()]})
        return
    table = Table(title=f"data sets, in {cache.folder}", title_justify="left")
    for heading in ("name", "a device is", "devices", "licence", "files"):
        table.add_column(heading, overflow="fold")
    for one in ENTRIES.values():
        table.add_row(one.name, one.device, one.devices, one.licence.name, _said(one, cache))
    console.out.print(table)


@app.command()
def show(name: Name, chosen: Chosen = None, json: Json = False) -> None:
    """Show a data set: whose data it is, its licence, its files with their checksums, the models that fit, and its options.

    With options, what it holds with these is counted: devices, examples of a device, and how much of a text its vocabulary knows.

    Example: fedrho data show caldracor --option form=sequences
    """
    from fedrho.simulations.data.cache import Cache
    from fedrho.simulations.data.catalogue import entry

    cache, found = Cache(), entry(name)
    facts = _counted(name, chosen) if chosen else None
    if json:
        console.print_json({**entry_values(found, cache), **({"counted": facts.to_json()} if facts else {})})
        return
    about, options = (
        Table(title=f"{name}: {found.summary}", show_header=False, title_justify="left"),
        Table("option", "default", "allowed", "meaning"),
    )
    for key, value in _rows(found, cache):
        about.add_row(key, value)
    for key, value in facts.rows if facts else ():
        about.add_row(f"{key}, counted", value)
    for option in found.options:
        options.add_row(option.name, option.default, option.allowed, option.meaning)
    console.out.print(about)
    console.out.print(options)


def _counted(name: str, settings: list[str]) -> Facts:
    """Of the data set with options KEY=VALUE, whose values are TOML, or else text. Raises DataError."""
    from fedrho.simulations.data.base import DataError, DataSource
    from fedrho.simulations.data.catalogue import check_data, open_data
    from fedrho.simulations.data.facts import counted

    options: dict[str, object] = {}
    for setting in settings:
        key, found, value = setting.partition("=")
        if not found or key.strip() in ("", "name"):
            raise DataError(f"--option {setting[:60]!r}: allowed: KEY=VALUE, for example form=sequences")
        try:
            options[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except ValueError:
            options[key.strip()] = value.strip()
    source = DataSource.of({"name": name, **options})
    check_data(source)
    with Fetching(f"opening {name}") as downloads:
        opened = open_data(source, downloads.show)
    with Work("counting") as work:
        return counted(opened, work.progress)


@app.command()
def words(name: Name, most: Most = 9998) -> None:
    """Print the words that most speakers of a published text use, the commonest first: how the lists of models were made.

    A vocabulary tells what was said, so it is made of public texts, and used on others. What devices hold chooses a vocabulary in
    one way alone, by a noisy histogram that is charged: `vocabulary = "private"` of a study.

    Example: fedrho data words parlamint-es --most 9998
    """
    from fedrho.simulations.data.cache import Cache
    from fedrho.simulations.data.speakers import corpus
    from fedrho.simulations.data.vocabularies import made_of

    found = corpus(name)
    with Fetching(f"reading {name}") as downloads:
        texts = found.read(Cache(progress=downloads.show).path(found.file))
    with Work("counting words") as work:
        made = made_of(texts, most, work.progress)
    for word in made:
        typer.echo(word)


@app.command()
def fetch(name: Name, quiet: Quiet = False, json: Json = False) -> None:
    """Fetch the files of a data set and check them, so that a simulation needs no network. What is here is checked alone.

    Example: fedrho data fetch mnist
    """
    from fedrho.simulations.data.cache import Cache
    from fedrho.simulations.data.catalogue import entry

    found = entry(name)
    with Fetching(f"checking {name}") as downloads:
        cache = Cache(progress=downloads.show)
        paths = [cache.path(file) for file in found.files]
    if json:
        console.print_json(entry_values(found, cache))
        return
    if quiet:
        return
    for path in paths:
        console.out.print(f"{path}: as it should be", highlight=False, soft_wrap=True)
    if not paths:
        console.out.print(f"{name} needs no files", highlight=False)
    console.out.print(f"licence: {found.licence.name}; {found.licence.attribution}", highlight=False, soft_wrap=True)


def entry_values(entry: Entry, cache: Cache) -> dict[str, object]:
    return {
        "name": entry.name,
        "summary": entry.summary,
        "device": entry.device,
        "devices": entry.devices,
        "examples": entry.examples,
        "held_out": entry.held_out,
        "licence": entry.licence.name,
        "attribution": entry.licence.attribution,
        "source": entry.licence.source,
        "models": list(entry.models),
        "files": [file_values(file, cache) for file in entry.files],
        "options": [option_values(option.name, option.default, option.allowed, option.meaning) for option in entry.options],
    }


def file_values(file: RemoteFile, cache: Cache) -> dict[str, object]:
    path = cache.folder / file.name
    return {
        "path": str(path),
        "here": path.is_file(),
        "bytes": file.size or None,
        "sha256": file.sha256,
        "urls": list(file.urls),
    }


def option_values(name: str, default: str, allowed: str, meaning: str) -> dict[str, object]:
    return {"name": name, "default": default, "allowed": allowed, "meaning": meaning}


def _said(entry: Entry, cache: Cache) -> str:
    if not entry.files:
        return "none needed"
    there = sum((cache.folder / file.name).is_file() for file in entry.files)
    return "here" if there == len(entry.files) else f"{there} of {len(entry.files)} here; {_size(entry)}"


def _size(entry: Entry) -> str:
    sizes = [file.size for file in entry.files]
    return f"{sum(sizes) / 2**20:.1f} MiB" if all(sizes) else "size unknown"


def _rows(entry: Entry, cache: Cache) -> list[tuple[str, str]]:
    return [
        ("a device is", entry.device),
        ("devices", entry.devices),
        ("examples", entry.examples),
        ("held out", entry.held_out),
        ("licence", entry.licence.name),
        ("to be named", entry.licence.attribution),
        ("source", entry.licence.source),
        ("models", ", ".join(entry.models)),
        *(
            (f"file {'(here)' if (cache.folder / file.name).is_file() else '(to be fetched)'}", _file(file))
            for file in entry.files
        ),
    ]


def _file(file: RemoteFile) -> str:
    checksum = f"sha256 {file.sha256}" if file.sha256 else "its authors publish no checksum"
    return "\n".join((file.name, checksum, *file.urls))
