"""The option `--model`: saved Keras models that commands are given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedrho.console import BadInput


def add_models(files: Sequence[Path]) -> None:
    """Raises BadInput for a file that is no model, or none that can be trained."""
    from fedrho.models.saved import SavedModelError, add_saved

    for file in files:
        try:
            add_saved(file)
        except SavedModelError as error:
            raise BadInput(f"--model {error}") from error
