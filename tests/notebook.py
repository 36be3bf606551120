"""Executes the notebook of the documentation in a folder of its own.

`python -m tests.notebook` stores what it printed; with a file, it is written there instead.
"""

from __future__ import annotations

import base64
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebooks" / "first-model.ipynb"
SECONDS = 300
"""For one cell, on a machine that others use as well."""


def executed(folder: Path) -> Any:
    """A copy with the outputs of a fresh kernel; raises CellExecutionError where a cell does."""
    import nbformat
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    copy = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    here = {"metadata": {"path": str(folder)}}
    with tempfile.TemporaryDirectory() as sockets:  # not TCP, which every user of the machine could listen to
        manager = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=f"{sockets}/kernel")
        NotebookClient(copy, km=manager, timeout=SECONDS, startup_timeout=SECONDS, resources=here).execute()
    return copy


def stored(path: Path = NOTEBOOK) -> Any:
    import nbformat

    return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]


def shown(notebook: Any) -> list[list[str]]:
    """Of each code cell what a reader sees: its texts, and of a picture that there is one (its bytes differ with fonts)."""
    return [[_seen(output) for output in joined(cell.outputs)] for cell in notebook.cells if cell.cell_type == "code"]


def joined(outputs: list[Any]) -> list[Any]:
    """Printed text comes in as many pieces as the kernel found time for."""
    whole: list[Any] = []
    for output in outputs:
        if whole and output.output_type == "stream" == whole[-1].output_type and output.name == whole[-1].name:
            whole[-1].text += output.text
        else:
            whole.append(output.copy())
    return whole


def _seen(output: Any) -> str:
    if output.output_type == "stream":
        return f"{output.name}: {output.text}"
    pictures = [kind for kind in output.data if kind.startswith("image/")]
    return ", ".join(pictures) or str(output.data["text/plain"])


def tidy(notebook: Any) -> None:
    """Without what differs from run to run: times and versions."""
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = {"alt": cell.metadata.alt} if "alt" in cell.metadata else {}
        if "outputs" in cell:
            cell.outputs = joined(cell.outputs)
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data = {"image/png": _whole(output.data["image/png"]), "text/plain": "a figure"}
                output.metadata = {}


def _whole(picture: str) -> str:
    """Base64 on one line."""
    return base64.b64encode(base64.b64decode(re.sub(r"\s", "", picture))).decode()


def main() -> None:
    import nbformat

    with tempfile.TemporaryDirectory() as folder:
        notebook = executed(Path(folder))
    tidy(notebook)
    nbformat.write(notebook, sys.argv[1] if len(sys.argv) > 1 else NOTEBOOK)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
