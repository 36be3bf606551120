"""Auditing is as light to import as the accountant: no TensorFlow, no scikit-learn, no wire, no database."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[3] / "privacy" / "auditing"
PROGRAM = (
    "import sys, json, importlib; [importlib.import_module(m) for m in sys.argv[1:]]; print(json.dumps(sorted(sys.modules)))"
)


def test_the_auditing_package_loads_no_tensorflow_no_sklearn_no_wire_and_no_database() -> None:
    modules = sorted(f"fedrho.privacy.auditing.{path.stem}" for path in FOLDER.glob("*.py") if path.stem != "__init__")
    assert len(modules) >= 10
    done = subprocess.run([sys.executable, "-c", PROGRAM, *modules], capture_output=True, check=True, text=True, timeout=60)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert {"fedrho", "numpy", "scipy"} <= loaded
    assert not loaded & {"tensorflow", "tensorflow_privacy", "keras", "grpc", "sqlalchemy", "sqlite3", "sklearn", "dp_accounting"}
