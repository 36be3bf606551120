"""The pages that explain: their pictures are what the script draws, and the threat model cites tests that are there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def drawn(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.svg"))}


@pytest.mark.slow
def test_the_pictures_are_what_the_script_draws(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "docs/pictures", str(tmp_path)], cwd=TOP, check=True, timeout=120)
    shown = drawn(TOP / "docs" / "images")
    for name, text in drawn(tmp_path).items():
        # Strategies are optimised, and another processor may end a digit further on.
        assert NUMBER.sub("0", text) == NUMBER.sub("0", shown[name]), name
        pairs = zip(NUMBER.findall(text), NUMBER.findall(shown[name]), strict=True)
        assert max(abs(float(new) - float(old)) for new, old in pairs) <= 0.2, name


def test_every_picture_of_ours_is_shown_with_its_description() -> None:
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (TOP / "docs").glob("*.md"))
    described = dict(re.findall(r"!\[([^\]]{40,})\]\(images/([\w-]+\.svg)\)", pages))
    names = {path.name for path in (TOP / "docs" / "images").glob("*.svg") if path.name.startswith(("idea-", "trust-"))}
    assert names <= set(described.values())


THREATS = (TOP / "docs" / "threat-model.md").read_text(encoding="utf-8").partition("<!-- threats -->")[2].partition("<!-- /")[0]
ROWS = [line.split("|")[1:-1] for line in THREATS.strip().splitlines()[2:]]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0].strip()}: {row[1].strip()}")
def test_each_threat_names_a_module_and_a_test(row: list[str]) -> None:
    modules, tests = (re.findall(r"`([^`]+)`", cell) for cell in row[3:5])
    assert modules
    assert tests
    assert all((TOP / path).is_file() for path in (*modules, *tests))
    assert all(re.search(r"^(?:async )?def test_", (TOP / path).read_text(encoding="utf-8"), re.MULTILINE) for path in tests)
