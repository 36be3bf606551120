"""Every assumption that a statement can carry is explained on the page that teaches reading one; a new one fails here.

The sentences are read from the source of the functions that write them, with `…` for what is filled in.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from fedrho.privacy.adaptive import AdaptiveGaussian
from fedrho.privacy.banded import BandedToeplitz
from fedrho.privacy.blt import BufferedToeplitz
from fedrho.privacy.independent import IndependentGaussian
from fedrho.privacy.mechanism import Mechanism
from fedrho.privacy.tree import BinaryTree
from fedrho.privacy.vectors import Grid

TOP = Path(__file__).parents[1]
PAGE = (TOP / "docs" / "read-a-statement.md").read_text(encoding="utf-8")

NOISES = re.findall(r"<!-- noises -->(.*?)<!-- /noises -->", PAGE, re.DOTALL)
MARK = re.compile(r"\bassumptions=|Statement\(|NoGuarantee\(")
STATEMENTS = ("PrivacyStatement", "LabelStatement", "SampledStatement", "NoGuarantee")
SENTENCES = {
    "privacy/claims.py": ("COMMON", "claim", "sampled_assumptions", "_kept"),
    "privacy/vocabulary.py": ("statement",),
    "privacy/labels/statement.py": ("ASSUMPTIONS",),
    "privacy/labels/ledger.py": ("_about_persons",),
    "privacy/labels/local.py": ("LOCAL",),
    "server/ledger.py": ("statement", "_constants"),
    "server/starting.py": ("SETTINGS", "starting_assumption", "_brought"),
    "simulations/claim.py": ("PROTECTS_NOBODY", "ANSWERS_VOID", "AGAINST_NOBODY", "NO_GUARANTEE"),
    "simulations/poisson.py": ("claim",),
    "simulations/results.py": ("assumptions",),
    "simulations/sweep.py": ("WARNING",),
    "simulations/virtual.py": ("CORRELATED", "_but_for_words"),
    "fedrho/account.py": ("_priced",),
    "fedrho/labels/answering.py": ("_assumptions",),
    "fedrho/labels/baseline.py": ("ASSUMPTIONS",),
    "fedrho/labels/data.py": ("benchmark", "own"),
    "fedrho/labels/ratings.py": ("of_table",),
    "fedrho/labels/training.py": ("_non_private", "_dp_sgd", "_about_seeds"),
}
"""Functions and constants that write assumptions, or what stands in their place."""
OTHERS = {
    ("fedrho/labels/baseline.py", "statement"),
    ("fedrho/labels/randomize.py", "_show"),
    ("fedrho/labels/train.py", "_print_claims"),
    ("privacy/labels/ledger.py", "statement"),
    ("privacy/labels/local.py", "local_statement"),
    ("privacy/statement.py", "combined"),
    ("privacy/statement.py", "compose"),
    ("server/operations/operator_wire.py", "_label_statement"),
    ("server/operations/operator_wire.py", "_read_label_statement"),
    ("server/operations/operator_wire.py", "_read_statement"),
    ("server/operations/operator_wire.py", "_statement"),
    ("server/tasks.py", "label_statement"),
    ("simulations/nonprivate.py", "claim"),
    ("simulations/virtual.py", "statement"),
}
"""Functions that put together or pass on what those wrote, and add no sentence of their own."""


@cache
def trees() -> list[tuple[str, ast.Module]]:
    """Of every file that has to do with statements."""
    paths = [path for folder in ("privacy", "server", "client", "models", "simulations") for path in (TOP / folder).rglob("*.py")]
    texts = {path: path.read_text(encoding="utf-8") for path in (*paths, *(TOP / "fedrho").rglob("*.py"))}
    ours = {path.resolve().relative_to(TOP).as_posix(): text for path, text in texts.items()}
    return [(path, ast.parse(text)) for path, text in sorted(ours.items()) if path in SENTENCES or MARK.search(text)]


def named(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Every function, also of classes, and every constant of a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
    for top in tree.body:
        if isinstance(top, ast.Assign) and isinstance(top.targets[0], ast.Name):
            yield top.targets[0].id, top.value
        elif isinstance(top, ast.AnnAssign) and isinstance(top.target, ast.Name) and top.value is not None:
            yield top.target.id, top.value


def writers() -> set[tuple[str, str]]:
    """Functions that make a statement, or give one its assumptions."""
    found = set()
    for path, tree in trees():
        for name, node in named(tree):
            calls = [call for call in ast.walk(node) if isinstance(call, ast.Call)]
            if any(_called(call) in STATEMENTS or any(one.arg == "assumptions" for one in call.keywords) for call in calls):
                found.add((path, name))
    return found


def _called(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


def sentences(node: ast.AST) -> Iterator[str]:
    """Outermost strings of four words or more, but for docstrings, the texts of errors, and what is shown meanwhile."""
    if isinstance(node, ast.Raise | ast.withitem):
        return
    if isinstance(node, ast.JoinedStr | ast.Constant):
        text = _text(node)
        if len(text.split()) >= 4:
            yield text
        return
    whole: list[ast.AST] = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.FunctionDef):
        whole = [*node.body[1:]] if ast.get_docstring(node) is not None else [*node.body]
    for child in whole:
        yield from sentences(child)


def _text(node: ast.JoinedStr | ast.Constant) -> str:
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return "".join(
        part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else "…" for part in parts
    ).strip()


def written() -> set[str]:
    found: dict[tuple[str, str], set[str]] = {}
    for path, tree in trees():
        for name, node in named(tree):
            if name in SENTENCES.get(path, ()):
                found.setdefault((path, name), set()).update(sentences(node))
    assert set(found) == {(path, name) for path, names in SENTENCES.items() for name in names}
    return set().union(*found.values())


def explained() -> set[str]:
    cells = [re.findall(r"^\| (`.+?`) \|", part, re.MULTILINE) for part in PAGE.replace(NOISES[0], "").split("<!-- ")[1:]]
    return {code for column in cells for cell in column for code in re.findall(r"`([^`]+)`", cell)}


def test_every_assumption_is_explained_and_no_other() -> None:
    assert explained() ^ written() == set()


def test_every_noise_is_explained_and_no_other() -> None:
    kinds: list[type[Mechanism[Any]]]
    kinds = [BinaryTree, BandedToeplitz, BufferedToeplitz, IndependentGaussian, AdaptiveGaussian]
    assert set(kinds) >= {kind for kind in Mechanism.__subclasses__() if kind.__module__.startswith("fedrho.")}
    rows = dict(re.findall(r"^\| `([^`]+)` \|.*?\| ([^|]*) \|$", NOISES[0], re.MULTILINE))
    assert set(rows) == {*(f"{kind.words} ({kind.name})" for kind in kinds), Mechanism.words}
    two = [BinaryTree(Grid(1.0, 16), 1.0), BinaryTree(Grid(1.0, 16), 1.0, (5, 7), completed=True)]
    told = [text.partition("noise multiplier 1.0, ")[2] for text in (one.described() for one in two)]
    assert told == ["one tree without restarts", "restarted after trees of (5, 7) steps, each completed before the next begins"]
    shown = re.findall(r"`([^`]+)`", rows[f"{BinaryTree.words} ({BinaryTree.name})"])
    assert shown == ", ".join(told).replace("(5, 7)", "…").split(", ")
    for kind in set(kinds) - {BinaryTree}:
        named = [part.name.replace("_", " ") for part in fields(kind) if part.name not in ("grid", "noise_multiplier")]
        assert [f"{name} …" for name in named] == re.findall(r"`([^`]+)`", rows[f"{kind.words} ({kind.name})"])


def test_nobody_else_writes_assumptions() -> None:
    known = {(path, name) for path, names in SENTENCES.items() for name in names}
    assert writers() - known - OTHERS == set()
    assert writers() >= OTHERS
