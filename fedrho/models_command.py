"""The commands about the model zoo: `fedrho models list`, `show` and `export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from fedrho import completions, console
from fedrho.console import BadInput
from fedrho.output_options import Json

if TYPE_CHECKING:
    from fedrho.models.base import ModelSpec
    from fedrho.models.flat import FlatModel

app = typer.Typer(
    help="The model zoo: what there is, what each takes and gives, and its weights.\n\nExample: fedrho models show mnist-cnn",
    no_args_is_help=True,
)

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A model as `fedrho models list` names it, a network of keras.applications, or FILE.keras.",
        autocompletion=completions.models,
    ),
]


@app.command("list")
def list_all(json: Json = False) -> None:
    """List every model by name: what it takes and gives, how many weights it has, and where it was published. Builds none.

    Example: fedrho models list
    """
    from fedrho.models.applications import FORM, NETWORKS, has_state
    from fedrho.models.base import UnknownModel
    from fedrho.models.zoo import lookup, names

    found: list[ModelSpec] = []
    for name in names():
        try:
            found.append(lookup(name))
        except UnknownModel as error:  # of a package that is at fault; the others are listed all the same
            console.err.print(f"fedrho: {error}", highlight=False, markup=False, soft_wrap=True)
    if json:
        networks = [{"network": one, "stateless": has_state(one)} for one in NETWORKS]
        console.print_json({"models": [model_values(one) for one in found], "applications": {"form": FORM, "networks": networks}})
        return
    table = Table(title="models", title_justify="left")
    for heading in ("name", "takes", "gives", "weights", "published"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "weights" else "left")
    for one in found:
        table.add_row(one.name, takes(one), gives(one), f"{one.parameters:,}" if one.parameters else "", one.paper)
    console.out.print(table)
    console.out.print(f"and networks of keras.applications: {FORM}", highlight=False, markup=False)


@app.command()
def show(name: Name, json: Json = False) -> None:
    """Show a model: builder, inputs and outputs, loss, metrics, where each weight lies in the flat vector, bytes of an update.

    Example: fedrho models show mnist-cnn
    """
    spec = found_model(name)
    with console.working("building the model"):
        values = shown_values(spec)
    if json:
        console.print_json(values)
        return
    about = Table(title=f"{spec.name}: {spec.summary}", show_header=False, title_justify="left")
    for key, value in _rows(spec, values):
        about.add_row(key, value)
    weights = Table(title="the flat vector", title_justify="left")
    for heading in ("weight", "shape", "offset", "size"):
        weights.add_column(heading, overflow="fold", justify="left" if heading == "weight" else "right")
    for one in values["weights"]:
        weights.add_row(one["name"], _sides(one["shape"]) or "one", f"{one['offset']:,}", f"{one['size']:,}")
    console.out.print(about)
    console.out.print(weights)


@app.command()
def export(
    name: Name,
    out: Annotated[Path, typer.Option(metavar="FILE", help="NAME.keras, NAME.safetensors, NAME.npz or NAME.tflite.")],
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of the weights that it draws.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a model with the weights that a run begins with. Of no data, so there is no privacy statement; a note in its place.

    Example: fedrho models export mnist-cnn --out mnist.keras
    """
    from fedrho.export import check_out, write_model

    check_out(out, force)
    spec = found_model(name)
    from fedrho.models.flat import FlatModel

    with console.working("writing the model"):
        model = FlatModel(spec, seed)
        write_model(out, model, {"model": spec.name, "step": 0, "seed": seed, "initial": True})
    console.out.print(f"{out}: {spec.name} as it begins, {model.size:,} weights", highlight=False, markup=False, soft_wrap=True)


def found_model(name: str) -> ModelSpec:
    """By its name, or of a saved file; raises UnknownModel, or BadInput for a file that is no model."""
    from fedrho.models.saved import SUFFIX, SavedModelError, add_saved
    from fedrho.models.zoo import lookup

    if not name.endswith(SUFFIX):
        return lookup(name)
    try:
        return add_saved(Path(name))
    except SavedModelError as error:
        raise BadInput(str(error)) from error


def model_values(spec: ModelSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "summary": spec.summary,
        "input_shape": list(spec.input_shape),
        "input_dtype": spec.input_dtype,
        "vocabulary": spec.vocabulary or None,
        "label_shape": list(spec.label_shape),
        "classes": spec.classes,
        "ignored": spec.ignored,
        "outputs": spec.outputs.value,
        "tokens": spec.tokens or None,
        "parameters": spec.parameters or None,
        "paper": spec.paper or None,
    }


def shown_values(spec: ModelSpec) -> dict[str, Any]:
    """Builds the model; raises UnknownModel for one that cannot be trained as a flat vector."""
    from fedrho.models.flat import FlatModel
    from fedrho.models.vectorised import vectorises
    from fedrho.models.weights_file import weight_names

    model = FlatModel(spec)
    return {
        **model_values(spec),
        "parameters": model.size,
        "builder": _builder(spec),
        "loss": "mean sparse categorical cross-entropy" + (", and what layers add" if model.keras_model.losses else ""),
        "metrics": ["accuracy"],
        "frozen": _frozen(model),
        "vectorised": vectorises(spec),
        "bytes": 4 * model.size,
        "weights": [
            weight_values(name, segment.shape, segment.offset, segment.size)
            for name, segment in zip(weight_names(model), model.layout, strict=True)
        ],
    }


def weight_values(name: str, shape: tuple[int, ...], offset: int, size: int) -> dict[str, Any]:
    return {"name": name, "shape": list(shape), "offset": offset, "size": size}


def _frozen(model: FlatModel) -> int:
    """How many numbers in it are not trained."""
    return int(model.keras_model.count_params()) - model.size


def _builder(spec: ModelSpec) -> str:
    """The function and what it is called with, or the file."""
    from functools import partial

    from fedrho.models.saved import LoadSaved

    if isinstance(spec.build, LoadSaved):
        return spec.build.path
    function = spec.build.func if isinstance(spec.build, partial) else spec.build
    arguments = _arguments(spec.build) if isinstance(spec.build, partial) else ""
    module, name = getattr(function, "__module__", ""), getattr(function, "__qualname__", type(function).__name__)
    return f"{module}.{name}({arguments})"


def _arguments(call: Any) -> str:
    return ", ".join([*map(repr, call.args), *(f"{name}={value!r}" for name, value in call.keywords.items())])


def takes(spec: ModelSpec) -> str:
    """Of one example, in words."""
    if spec.vocabulary:
        return f"{_sides(spec.input_shape)} ids below {spec.vocabulary:,}"
    return f"{_sides(spec.input_shape)} numbers"


def gives(spec: ModelSpec) -> str:
    """Scores for what, and where."""
    places = f" at each of {_sides(spec.label_shape)} places" if spec.label_shape else ""
    return f"{spec.classes:,} {spec.outputs.value}{places}"


def _sides(shape: tuple[int, ...] | list[int]) -> str:
    return " x ".join(map(str, shape))


def _rows(spec: ModelSpec, values: dict[str, Any]) -> list[tuple[str, str]]:
    size = values["bytes"]
    ignored = f"; labels below {spec.ignored} do not count" if spec.ignored else ""
    return [
        ("builder", values["builder"]),
        ("takes", f"{spec.input_dtype} (batch, {', '.join(map(str, spec.input_shape))}): {takes(spec)}"),
        ("gives", f"float32 (batch, {', '.join(map(str, (*spec.label_shape, spec.classes)))}): {gives(spec)}"),
        ("text", spec.tokens or "none"),
        ("loss", values["loss"] + ignored),
        ("metrics", ", ".join(values["metrics"])),
        ("weights", f"{values['parameters']:,} trained and averaged, {values['frozen']:,} frozen"),
        ("an update", f"{size:,} bytes, 4 a weight; the model the same"),
        ("simulated", "many devices at once (vectorised)" if values["vectorised"] else "one device at a time"),
        ("published", spec.paper or "not as such"),
    ]
