"""The accountant is light: anyone can import and audit it without TensorFlow, a wire or a database."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

MODULES = sorted(
    f"fedrho.privacy.{path.stem}" for path in (Path(__file__).parents[2] / "privacy").glob("*.py") if path.stem != "__init__"
)
PROGRAM = (
    "import sys, json, importlib; [importlib.import_module(m) for m in sys.argv[1:]]; print(json.dumps(sorted(sys.modules)))"
)


def test_the_privacy_package_loads_no_tensorflow_no_wire_and_no_database() -> None:
    assert len(MODULES) >= 10
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "fedrho.privacy", *MODULES], capture_output=True, check=True, text=True, timeout=60
    )
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert {"fedrho", "numpy", "scipy", "randomgen"} <= loaded
    assert not loaded & {"tensorflow", "keras", "grpc", "sqlalchemy", "sqlite3", "sklearn", "jax", "torch"}
