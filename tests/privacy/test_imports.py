"""The accountant is light: anyone can import and audit it without TensorFlow, a wire or a database."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PRIVACY = Path(__file__).parents[2] / "privacy"
MODULES = sorted(f"fedrho.privacy.{path.stem}" for path in PRIVACY.glob("*.py") if path.stem != "__init__")
PROGRAM = (
    "import sys, json, importlib; [importlib.import_module(m) for m in sys.argv[1:]]; print(json.dumps(sorted(sys.modules)))"
)


HEAVY = {"tensorflow", "keras", "grpc", "sqlalchemy", "sqlite3", "sklearn", "jax", "torch"}
SELDOM_NEEDED = {"randomgen", "dp_accounting", "matplotlib", "pandas"}
"""Whoever draws noise needs the first one, whoever compares with others the second; accounting does without."""


def loaded_by(*modules: str) -> set[str]:
    """Top-level names of everything that a fresh interpreter holds after importing `modules`."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *modules], capture_output=True, check=True, text=True, timeout=60)
    return {name.split(".")[0] for name in json.loads(done.stdout)}


def test_the_privacy_package_loads_no_tensorflow_no_wire_no_database_and_nothing_seldom_needed() -> None:
    assert len(MODULES) >= 10
    loaded = loaded_by("fedrho.privacy", *MODULES)
    assert {"fedrho", "numpy", "scipy"} <= loaded
    assert not loaded & (HEAVY | SELDOM_NEEDED)


@pytest.mark.parametrize("module", MODULES)
def test_each_module_names_numpy_scipy_and_the_standard_library_alone(module: str) -> None:
    """At its top, that is; imports within functions, and those for the type checker, are not run on import."""
    tree = ast.parse((PRIVACY / f"{module.rpartition('.')[2]}.py").read_text(encoding="utf-8"))
    named: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            named |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            named.add(node.module.split(".")[0])
    assert named <= sys.stdlib_module_names | {"fedrho", "numpy", "scipy"}


def test_the_imports_that_python_reports_name_nothing_seldom_needed() -> None:
    """Also what an import takes up and drops again."""
    program = "import " + ", ".join(MODULES)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program], capture_output=True, check=True, text=True, timeout=60
    )
    reported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert {"fedrho", "numpy", "scipy"} <= reported
    assert not reported & (HEAVY | SELDOM_NEEDED)
