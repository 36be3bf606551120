"""The notebook of the documentation does what is stored in it: every text that it prints, and a figure where one is shown."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import notebook

TOP = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_notebook_prints_what_is_stored(tmp_path: Path) -> None:
    # In a process of its own: what talks to a kernel leaves sockets to the garbage collector.
    subprocess.run([sys.executable, "-m", "tests.notebook", str(tmp_path / "now.ipynb")], cwd=TOP, check=True)
    assert notebook.shown(notebook.stored(tmp_path / "now.ipynb")) == notebook.shown(notebook.stored())


def test_the_stored_notebook_is_whole_and_without_errors() -> None:
    cells = [cell for cell in notebook.stored().cells if cell.cell_type == "code"]
    assert all(output.output_type != "error" for cell in cells for output in cell.outputs)
    assert sum("image/png" in seen for outputs in notebook.shown(notebook.stored()) for seen in outputs) == 2
    assert sum(bool(cell.outputs) for cell in cells) == len(cells) - 1
