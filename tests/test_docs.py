"""What the documentation says about commands, keys, fields and code is true; links lead somewhere."""

from __future__ import annotations

import re
import tomllib
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer.main
from pydantic_core import PydanticUndefined

from docs.hooks import proto_page
from fedrho import cli
from fedrho.account_options import BUDGET, MECHANISM, RUN
from fedrho.labels.settings import ExperimentFile
from fedrho.server.tasks import Section, TaskFile, parse_task
from fedrho.simulations.study import StudyFile, make_study
from tests.docs.pages import between, first_cells

TOP = Path(__file__).parents[1]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (TOP / "README.md", *sorted((TOP / "docs").glob("*.md")))}


def flattened(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every command by its full name, those of groups too."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from flattened(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


COMMANDS: dict[str, Any] = dict(flattened(typer.main.get_command(cli.app)))


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)


def pages_with(language: str) -> list[str]:
    return [page for page in PAGES if blocks(page, language)]


# -- the command line -------------------------------------------------------------------------------------------------------


def section_of(command: str) -> str:
    _, found, rest = PAGES["cli.md"].partition(f"\n## `fedrho {command}`\n")
    assert found, f"docs/cli.md has no section for {command}"
    return rest.partition("\n## ")[0]


def shown_name(parameter: Any) -> str:
    name: str = parameter.opts[-1] if parameter.opts[-1].startswith("-") else parameter.metavar or parameter.name.upper()
    return name


SHARED = (RUN, MECHANISM, BUDGET)


def options(command: str, shared: bool) -> list[str]:
    """The parameters of a command; `shared` ones stand in panels of the accountant's and are documented once for all commands."""
    parameters = [parameter for parameter in COMMANDS[command].params if "--help" not in parameter.opts]
    return [
        shown_name(parameter) for parameter in parameters if (getattr(parameter, "rich_help_panel", None) in SHARED) == shared
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_and_argument_is_documented_and_no_other(command: str) -> None:
    # The tables of options come before those of JSON fields, which stand between marks.
    assert first_cells(re.split(r"<!-- [a-z]+(?:-[a-z]+)+ -->", section_of(command))[0]) == options(command, shared=False)


def test_every_shared_option_is_documented_once_and_no_other() -> None:
    shared = {name: None for command in COMMANDS for name in options(command, shared=True)}
    assert sorted(first_cells(between("cli.md", "shared-options"))) == sorted(shared)


def test_every_command_has_a_section_and_no_other() -> None:
    assert set(re.findall(r"^## `fedrho ([\w ]+)`$", PAGES["cli.md"], re.MULTILINE)) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example(command: str) -> None:
    assert re.search(rf"^```sh\nfedrho {command}", section_of(command), re.MULTILINE)


# -- the task file -----------------------------------------------------------------------------------------------------------

NAMES = {int: "integer", float: "number", str: "string", bool: "boolean"}


def task_keys(section: type[Section] = TaskFile, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Key, type, default and allowed values of every key, from the models that check a task file."""
    hints = typing.get_type_hints(section, include_extras=True)
    for name, info in section.model_fields.items():
        kind, bounds = unwrapped(hints[name])
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from task_keys(kind, f"{prefix}{name}.")
        else:
            default = "required" if info.default is PydanticUndefined else shown(info.default)
            pair = any(getattr(bound, "max_length", None) == 2 for bound in bounds)
            yield f"{prefix}{name}", type_name(kind, pair), default, allowed(bounds)


def unwrapped(hint: Any) -> tuple[Any, list[Any]]:
    """The bare type of a hint, and what its annotations demand."""
    if typing.get_origin(hint) is Annotated:
        inner, *extra = typing.get_args(hint)
        kind, bounds = unwrapped(inner)
        return kind, [*bounds, *(item for field in extra for item in (getattr(field, "metadata", None) or [field]))]
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return unwrapped(next(part for part in typing.get_args(hint) if part is not type(None)))
    if typing.get_origin(hint) is list:
        kind, bounds = unwrapped(typing.get_args(hint)[0])
        return [kind], bounds
    return hint, []


def type_name(kind: Any, pair: bool) -> str:
    if isinstance(kind, list):
        return f"[{NAMES[kind[0]]}, {NAMES[kind[0]]}]" if pair else f"list of {NAMES[kind[0]]}s"
    return NAMES[kind]


def shown(default: Any) -> str:
    return "none" if default is None else str(default).lower() if isinstance(default, bool) else str(default)


def allowed(bounds: list[Any]) -> str:
    """An interval in the usual notation, or a pattern; empty when everything is allowed."""
    found = {name: getattr(item, name) for item in bounds for name in ("ge", "gt", "le", "lt", "pattern") if hasattr(item, name)}
    if found.get("pattern"):
        return f"`{found['pattern']}`"
    if not found:
        return ""
    low = f"[{found['ge']}" if "ge" in found else f"({found['gt']}"
    high = f"{found['le']}]" if "le" in found else f"{found['lt']})" if "lt" in found else "∞)"
    return f"{low}, {high}"


def test_every_key_of_the_task_file_is_documented_as_it_is_checked() -> None:
    lines = re.findall(
        r"^\| `([a-z_.]+)` \| ([^|]*) \| [^|]+ \| ([^|]*) \| ([^|]*) \| [^|]+ \|$", PAGES["task-file.md"], re.MULTILINE
    )
    documented = [(key, kind, default, values.strip()) for key, kind, default, values in lines]
    assert documented == list(task_keys())


@pytest.mark.parametrize("page", pages_with("toml"))
def test_every_task_in_the_docs_loads(page: str) -> None:
    for text in blocks(page, "toml"):
        if not parts_of_a_study(text):
            parse_task(text, page)


def parts_of_a_study(text: str) -> bool:
    """Whether `text` is of a study rather than a task."""
    return tomllib.loads(text).keys() <= StudyFile.model_fields.keys()


# -- the study file ----------------------------------------------------------------------------------------------------------


def study_keys(section: type[Section] = StudyFile, prefix: str = "") -> Iterator[str]:
    """Every key of a study but those of its task and of its data."""
    hints = typing.get_type_hints(section, include_extras=True)
    for name in section.model_fields:
        kind, _ = unwrapped(hints[name])
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from study_keys(kind, f"{prefix}{name}.")
        else:
            yield "data.name" if name == "data" else f"{prefix}{name}"


def test_every_key_of_a_study_is_documented_and_no_other() -> None:
    assert first_cells(between("simulate.md", "study-keys")) == list(study_keys())


@pytest.mark.parametrize("page", pages_with("toml"))
def test_every_study_in_the_docs_loads(page: str) -> None:
    whole = tomllib.loads(blocks("simulate.md", "toml")[0])
    make_study(whole, "simulate.md", TOP)
    for text in filter(parts_of_a_study, blocks(page, "toml")):
        StudyFile.model_validate({**whole, **tomllib.loads(text)})


# -- the file of an experiment -----------------------------------------------------------------------------------------------


def experiment_keys(
    section: type[Section] = ExperimentFile, prefix: str = "", told: frozenset[object] = frozenset()
) -> Iterator[tuple[str, str, str, str]]:
    """Key, type, default and allowed values of every key; the keys of a section that was told of are told once."""
    hints = typing.get_type_hints(section, include_extras=True)
    for name, info in section.model_fields.items():
        kind, bounds = unwrapped(hints[name])
        inner = kind[0] if isinstance(kind, list) else kind
        value = info.get_default(call_default_factory=True)
        default = "required" if info.is_required() else "empty" if value in ("", []) else shown(value)
        if isinstance(inner, type) and issubclass(inner, Section):
            yield f"{prefix}{name}", "list of sections" if isinstance(kind, list) else "section", default, ""
            if inner not in told:
                yield from experiment_keys(inner, f"{prefix}{name}.", told | {inner})
                told |= {inner}
        elif typing.get_origin(kind) is typing.Literal:
            yield f"{prefix}{name}", "string", default, ", ".join(typing.get_args(kind))
        else:
            yield f"{prefix}{name}", type_name(kind, pair=False), default, allowed(bounds)


def test_every_key_of_an_experiment_is_documented_as_it_is_checked_and_no_other() -> None:
    table = between("label-privacy.md", "experiment-keys")
    lines = re.findall(r"^\| `([a-z_.]+)` \| ([^|]*) \|([^|]*)\|([^|]*)\| [^|]+ \|$", table, re.MULTILINE)
    assert [(key, kind, default.strip(), values.strip()) for key, kind, default, values in lines] == list(experiment_keys())
    assert len(lines) == table.count("\n| `")


# -- code and links ----------------------------------------------------------------------------------------------------------


def leads(path: Path) -> bool:
    """A notebook's page is made of the notebook."""
    return path.exists() or path.with_suffix(".ipynb").exists()


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_somewhere(page: str) -> None:
    folder = TOP if page == "README.md" else TOP / "docs"
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", PAGES[page])
    here = [target for target in targets if "://" not in target and Path(target).name != proto_page.PAGE]
    assert [target for target in here if not leads(folder / target)] == []


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r"^ +- [^#\n]+: (\S+\.md)$", (TOP / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    notebooks = {f"notebooks/{path.stem}.md" for path in (TOP / "docs" / "notebooks").glob("*.ipynb")}
    assert listed == set(PAGES) - {"README.md"} | notebooks


@pytest.mark.parametrize("page", PAGES)
def test_no_page_shows_a_path_of_some_machine(page: str) -> None:
    homes = {"/home/", "/Users/", f"{Path.home()}/"} - {"//"}
    assert [home for home in homes if home in PAGES[page]] == []
