"""The Python reference has every module that the docs tell people to import, and all of the accountant."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.docs.pages import PAGES, TOP, all_blocks

INSIDE = {
    "fedrho.privacy.auditing.attacker": "what `audit` knows",
    "fedrho.privacy.auditing.intervals": "what `audit` computes with",
    "fedrho.privacy.auditing.stream": "what `audit` runs",
    "fedrho.privacy.blocks": "how long vectors are worked on",
    "fedrho.privacy.kernels": "loops in C or numpy",
    "fedrho.privacy.labels.attacks": "what `fedrho labels audit` runs",
    "fedrho.privacy.labels.audit": "what `fedrho labels audit` runs",
    "fedrho.privacy.labels.audited": "what `fedrho labels audit` runs",
    "fedrho.privacy.labels.channels": "what prices of labels are computed from",
    "fedrho.privacy.labels.local": "what a device keeps",
    "fedrho.privacy.labels.thresholds": "how coins are tossed",
}
"""Modules of the lowest floor that nobody needs by name, with the reason."""
LISTED = set(re.findall(r"^::: (fedrho[\w.]+)$", "\n".join(PAGES.values()), re.MULTILINE))


def file_of(name: str) -> Path:
    """A module's file; of a name within a module, the module's."""
    path = TOP.joinpath(*name.split(".")[1:]).with_suffix(".py")
    return path if path.is_file() else TOP.joinpath(*name.split(".")[1:-1]).with_suffix(".py")


FILES = {file_of(name) for name in LISTED}


def test_every_module_that_an_example_imports_is_in_the_reference() -> None:
    trees = [ast.parse(block.text) for block in all_blocks("python")]
    names = {node.module for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    modules = {
        name for name in names if name.startswith("fedrho.") and TOP.joinpath(*name.split(".")[1:]).with_suffix(".py").is_file()
    }
    assert {name for name in modules if file_of(name) not in FILES} == set()


def test_every_module_of_the_lowest_floor_is_in_the_reference_or_inside() -> None:
    modules = {f"fedrho.{'.'.join(path.relative_to(TOP).with_suffix('').parts)}" for path in (TOP / "privacy").rglob("[!_]*.py")}
    assert {name for name in modules if file_of(name) not in FILES} == set(INSIDE)
