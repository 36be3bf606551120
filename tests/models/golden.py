"""What every model of the zoo makes of fixed weights and inputs: `python -m tests.models.golden` writes `golden.json` anew.

Weights and inputs are a formula of whole numbers, not what TensorFlow or numpy draw, so they are the same bits in every world.
The file was written under Keras 3; Keras 2.14 has to find the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrho.models import base, zoo
from fedrho.models.flat import FlatModel

FILE = Path(__file__).with_name("golden.json")
CHOSEN = ("digits-mlp+smelu", "mnist-small-cnn+smelu-0.5", "characters-transformer+relu")
"""Some with another activation than their own."""
NAMES = (*base.names(), *CHOSEN)
EXAMPLES = 3
RELATIVE = 2e-5
"""Tolerance of sums of float32 that were added up in another order: of the largest of the numbers beside it."""
RAW_ROWS = (
    (39, 13, 40, 2174, 0, 5, 0, 2, 8, 3, 0, 1, 0),
    (90, 1, 99, 0, 0, 8, 16, 7, 14, 6, 5, 2, 41),
    (20, 9, 35, 0, 1600, 0, 0, 0, 0, 0, 0, 0, 0),
)
"""Of Adult: numbers, then categories, in the second row all of them missing."""


def hashed(count: int, salt: int) -> NDArray[np.uint64]:
    """Whole numbers below 2**32 (Knuth's multiplicative hash, twice)."""
    places = np.arange(count, dtype=np.uint64) + np.uint64(salt)
    once = (places * np.uint64(2654435761)) % np.uint64(2**32)
    return ((once ^ (once >> np.uint64(15))) * np.uint64(2246822519)) % np.uint64(2**32)


def weights(model: FlatModel) -> NDArray[np.float32]:
    """In [-1, 1) / sqrt(inputs of a unit): outputs neither fade nor run away with depth."""
    parts = []
    for number, segment in enumerate(model.layout):
        fan_in = max(1, segment.size // segment.shape[-1])
        share = hashed(segment.size, 1000 * number) / 2.0**31 - 1.0
        parts.append(share / np.sqrt(fan_in) if len(segment.shape) > 1 else 0.3 * share + 0.5)
    return np.concatenate(parts).astype(np.float32)


def inputs(model: FlatModel) -> NDArray[Any]:
    spec = model.spec
    if spec.name.startswith("adult-raw"):
        return np.array(RAW_ROWS, dtype=np.float32)
    shape = (EXAMPLES, *spec.input_shape)
    drawn = hashed(int(np.prod(shape)), 7).reshape(shape)
    if spec.vocabulary:
        return (drawn % np.uint64(spec.vocabulary)).astype(np.int32)
    return (drawn / 2.0**32).astype(np.float32)


def labels(model: FlatModel) -> NDArray[np.int32]:
    shape = (EXAMPLES, *model.spec.label_shape)
    return (hashed(int(np.prod(shape)), 11).reshape(shape) % np.uint64(model.spec.classes)).astype(np.int32)


def measured(model: FlatModel) -> dict[str, Any]:
    """Layout, outputs, and what one step of SGD changes."""
    begin = weights(model)
    model.assign(begin)
    outputs = np.asarray(model.keras_model(inputs(model)), dtype=np.float64)
    model.sgd_step(inputs(model), labels(model), 0.1)
    change = (model.weights() - begin).astype(np.float64)
    return {
        "layout": [[list(segment.shape), segment.offset] for segment in model.layout],
        "outputs": [*outputs.reshape(-1)[:4], float(np.abs(outputs).sum()), float((outputs**2).sum())],
        "change": [float(np.abs(change).sum()), float(np.sqrt((change**2).sum()))],
    }


def known(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))[name]
    return found


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found["layout"] == wanted["layout"]
    for key in ("outputs", "change"):
        assert np.isfinite(found[key]).all()
        np.testing.assert_allclose(found[key], wanted[key], rtol=RELATIVE, atol=RELATIVE * min(1.0, max(map(abs, wanted[key]))))


def rounded(told: dict[str, Any]) -> dict[str, Any]:
    return {key: told[key] if key == "layout" else [float(f"{value:.7g}") for value in told[key]] for key in told}


def main() -> None:
    told = {name: rounded(measured(FlatModel(zoo.lookup(name)))) for name in NAMES}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(one, separators=(',', ':'))}" for name, one in told.items())
    FILE.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
