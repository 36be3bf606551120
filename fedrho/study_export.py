"""The weights of a finished study as a file that other tools read: to use them, or for another task to begin with."""

from __future__ import annotations

from pathlib import Path

from fedrho import export
from fedrho.console import BadInput
from fedrho.models.weights_file import WeightsFileError, read_weights
from fedrho.simulations import folder as folders
from fedrho.simulations.opening import model_of
from fedrho.simulations.study import make_study


def export_study(folder: Path, out: Path, force: bool) -> None:
    """Raises FolderError for what is no study's folder, BadInput for an unfinished one or a file that cannot be written."""
    values = folders.stored_values(folder)
    export.check_out(out, force)
    if not (folder / "weights.npz").exists():
        raise BadInput(f"{folder}: has no weights yet; go on with `fedrho simulate --resume {folder}`")
    study, _ = make_study(values, str(folder / "study.toml"), folder)
    from fedrho.models.flat import FlatModel

    model = FlatModel(model_of(study))
    try:
        held = read_weights(folder / "weights.npz")
        model.assign(held.flat(model))
    except WeightsFileError as error:
        raise BadInput(str(error)) from error
    export.write_model(out, model, held.statement or {})
