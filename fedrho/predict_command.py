"""`fedrho predict`: an exported model at work, on what one gives it, with the privacy statement that goes with its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from fedrho import completions, console
from fedrho.console import BadInput
from fedrho.output_options import Json
from fedrho.privacy.statement import round_up
from fedrho.work import Work

if TYPE_CHECKING:
    from fedrho.predicting import Exported, Probabilities, Reader


def predict(
    export: Annotated[
        Path, typer.Argument(metavar="EXPORT", help="NAME.keras, NAME.safetensors or NAME.npz of `fedrho export`.")
    ],
    text: Annotated[str | None, typer.Option(help="What comes after this?", show_default="none")] = None,
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A PNG or JPEG; resized where need be.", show_default="none")
    ] = None,
    features: Annotated[
        str | None, typer.Option(metavar="NUMBERS", help="With commas between them.", show_default="none")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="NAME.npz with `features`, or NAME.csv.", show_default="none")
    ] = None,
    top: Annotated[int, typer.Option(min=1, max=1000, help="How many answers to each.")] = 3,
    go_on: Annotated[
        int,
        typer.Option("--continue", metavar="N", min=0, max=10_000, help="With --text: go on for so many characters or words."),
    ] = 0,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=100, help="Of what --continue draws; 0 takes the likeliest.", show_default="1.0")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**63 - 1, help="Of what --continue draws.", show_default="0")] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="What ids stand for; NAME.txt has a word a line.",
            show_default="as it says",
            autocompletion=completions.tokens,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Of weights that do not say it, or the saved model.",
            show_default="as it says",
            autocompletion=completions.models,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show what an exported model predicts: the next words of a text, or the class of an image or of numbers, with probabilities.

    Example: fedrho predict spanish.npz --text "muchas gracias señor"
    """
    from fedrho.predicting import Reader, read_export

    given = [
        name for name, value in (("text", text), ("image", image), ("features", features), ("data", data)) if value is not None
    ]
    if len(given) != 1:
        raise BadInput("give one of --text, --image, --features and --data")
    for option, used in (("--continue", go_on), ("--tokens", tokens)):
        if used and text is None:
            raise BadInput(f"{option}: goes with --text; add it, or leave it out")
    for option, drawn in (("--temperature", temperature), ("--seed", seed)):
        if drawn is not None and not go_on:
            raise BadInput(f"{option}: is of what --continue draws; add --continue N, or leave it out")
    with console.working("reading the model"):
        exported = read_export(export, model)
    if text is not None:
        values = _of_text(Reader.of(exported, tokens), text, top, go_on, 1.0 if temperature is None else temperature, seed or 0)
    else:
        values = _of_features(exported, image, features, data, top)
    values = {"export": str(export), "model": exported.spec.name, **values, "claim": claim(exported.statement)}
    if json:
        console.print_json({**values, "statement": exported.statement and dict(exported.statement)})
        return
    _print(values)


def _of_text(reader: Reader, text: str, top: int, count: int, temperature: float, seed: int) -> dict[str, Any]:
    ids = reader.ids(text)
    probabilities = reader.following(ids)
    likeliest = [one for one in np.argsort(-probabilities, kind="stable") if one >= 2][:top]
    answers = [
        {"class": int(one), "token": reader.tokens.shown(int(one)), "probability": float(probabilities[one])} for one in likeliest
    ]
    with Work("going on") as work:
        drawn = reader.continued(ids, count, temperature, seed, work.progress) if count else []
    more = reader.tokens.decode(drawn) if count else None
    return {"predictions": [answers], "continuation": more and reader.tokens.joined + more, "text": text}


def _of_features(exported: Exported, image: Path | None, features: str | None, data: Path | None, top: int) -> dict[str, Any]:
    from fedrho.predicting import read_data, read_image, typed

    spec = exported.spec
    if spec.label_shape:
        raise BadInput(f"model {spec.name!r} guesses every next token of a sequence; --text shows what follows")
    note = None
    if image is not None:
        values, own, taken = read_image(image, spec)
        note = f"{own[0]} x {own[1]}, resized to {taken[0]} x {taken[1]}" if own != taken else None
    else:
        values = typed(features, spec) if features is not None else read_data(data, spec)  # type: ignore[arg-type]
    return {"predictions": [_answers(one, top) for one in exported.probabilities(values)], "resized": note}


def _answers(probabilities: Probabilities, top: int) -> list[dict[str, Any]]:
    likeliest = np.argsort(-probabilities, kind="stable")[:top]
    return [{"class": int(one), "probability": float(probabilities[one])} for one in likeliest]


def claim(statement: Mapping[str, Any] | None) -> str:
    """One line, as the file has it; nothing is claimed of weights that no statement is of."""
    if statement is None:
        return "none in the file"
    if statement.get("initial") is True:
        return "none: weights as they begin, that nothing was trained into"
    if "simulation" in statement:
        return f"none: weights of a simulation, which protects nobody{'; no guarantee' if 'guarantee' in statement else ''}"
    try:
        return _claimed(statement)
    except (KeyError, TypeError, ValueError):
        return "none in the file"


def _claimed(statement: Mapping[str, Any]) -> str:
    """Raises KeyError, TypeError or ValueError for no claim. One about labels has no rho, and where it is pure no delta."""
    rho, delta = statement.get("rho"), float(statement["delta"])
    said = "" if rho is None else f"rho {_price(rho)}, "
    epsilon = f"epsilon {_price(statement['epsilon'])} " + (f"at delta {delta!r}" if delta else "(pure)")
    unit, neighbours = (_one_line(statement[key]) for key in ("unit", "neighbours"))
    assumptions = len(list[str](statement["assumptions"]))
    return f"{said}{epsilon}, unit: one {unit}, neighbours: {neighbours}, under the {assumptions} assumptions in the file"


def _price(value: Any) -> str:
    if not 0 <= float(value) < math.inf:
        raise ValueError(f"{value} is no price")
    return round_up(float(value))


def _one_line(text: Any) -> str:
    """Of a file that anybody may have written: nothing that a terminal would obey."""
    if not (isinstance(text, str) and text.isprintable()):
        raise ValueError("is no line of text")
    return text


def _print(values: Mapping[str, Any]) -> None:
    if values.get("resized"):
        _say(f"the image is {values['resized']}")
    several = len(values["predictions"]) > 1
    for number, answers in enumerate(values["predictions"]):
        shown = [f"{_named(one)} {one['probability']:.4f}" for one in answers]
        _say(f"{number}: {', '.join(shown)}" if several else "\n".join(shown))
    if values.get("continuation"):
        _say(values["text"] + values["continuation"])
    _say(f"privacy statement: {values['claim']}")


def _named(answer: Mapping[str, Any]) -> str:
    """A class by its number; a token as it is, but for one that nobody would see."""
    token = str(answer.get("token", answer["class"]))
    return token if token.strip() else repr(token)


def _say(text: str) -> None:
    console.out.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)
