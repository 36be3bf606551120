"""What the site is made of, as far as it can be told without building it; `./dev docs` builds it, with warnings as errors."""

from __future__ import annotations

import re

import pytest
import yaml

from docs.hooks import nothing_outside
from tests.docs.pages import TOP


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://unpkg.com/mermaid"></script>',
        '<link rel="stylesheet" href="https://fonts.googleapis.com/css?family=Roboto">',
        "<link href=//cdn.example.org/a.css rel=stylesheet>",
        '<img alt="" src="http://example.org/a.png">',
        "<style>@import 'https://example.org/a.css';</style>",
        "<style>body { background: url(https://example.org/a.png) }</style>",
    ],
)
def test_a_page_that_loads_from_elsewhere_is_found(html: str) -> None:
    assert len(nothing_outside.loads(f"<p>before</p>{html}<p>after</p>")) == 1


def test_links_and_what_is_here_are_not_loads() -> None:
    html = '<a href="https://arxiv.org/abs/1">paper</a><img src="images/a.svg"><link rel="stylesheet" href="assets/site.css">'
    assert nothing_outside.loads(html) == []


def test_styles_and_pictures_of_ours_load_nothing_from_elsewhere() -> None:
    texts = [path.read_text(encoding="utf-8") for suffix in ("css", "svg") for path in (TOP / "docs").rglob(f"*.{suffix}")]
    assert texts
    assert [found for text in texts for found in nothing_outside.loads(text)] == []
    assert [found for text in texts for found in re.findall(r"xlink:href=\"https?:[^\"]*", text)] == []


def test_what_stands_before_a_page_is_read_as_such() -> None:
    """A colon too many, and it would be on the page."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in (TOP / "docs").glob("*.md")}
    heads = {name: re.match(r"---\n(.*?\n)---\n", text, re.DOTALL) for name, text in texts.items()}
    found = {name: yaml.safe_load(head[1]) for name, head in heads.items() if head}
    assert found
    assert {name for name, values in found.items() if not isinstance(values, dict)} == set()


def test_every_hook_runs_and_every_extra_file_is_there() -> None:
    config = (TOP / "mkdocs.yml").read_text(encoding="utf-8")
    hooks = set(re.findall(r"docs/hooks/\w+\.py", re.search(r"^hooks: \[(.*)\]$", config, re.MULTILINE)[1]))  # type: ignore[index]
    assert hooks == {str(path.relative_to(TOP)) for path in (TOP / "docs" / "hooks").glob("*.py")}
    assert [name for name in re.findall(r"assets/[\w./-]+", config) if not (TOP / "docs" / name).is_file()] == []
