"""A hook of MkDocs: each notebook under docs/notebooks/ becomes a page, with the outputs that are stored in it.

The test suite executes the notebooks and compares; the site only shows. What a picture shows stands in its cell's metadata, as
`alt`. A page has the notebook itself beside it, to download.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            for name, content in pages(Path(file.src_uri), json.loads(Path(str(file.abs_src_path)).read_text(encoding="utf-8"))):
                files.append(File.generated(config, name, content=content))
    return files


def pages(place: Path, notebook: dict[str, Any]) -> Iterator[tuple[str, str | bytes]]:
    """The page, and the pictures that it shows."""
    parts = []
    for number, cell in enumerate(notebook["cells"], start=1):
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        for output in cell.get("outputs", []):
            picture = output.get("data", {}).get("image/png")
            if picture:
                name = f"{place.stem}-{number}.png"
                parts.append(f"![{cell['metadata'].get('alt', 'A picture that the cell above draws')}]({name})")
                yield place.with_name(name).as_posix(), base64.b64decode("".join(picture))
            else:
                parts.append(f"```text\n{''.join(output.get('text') or output['data']['text/plain']).rstrip()}\n```")
    parts.append(f"The notebook itself: [{place.name}]({place.name})")
    yield place.with_suffix(".md").as_posix(), "\n\n".join(parts) + "\n"
