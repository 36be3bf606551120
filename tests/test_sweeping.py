"""What the table of a sweep says below itself."""

from __future__ import annotations

from typing import Any

import pytest

from fedrho.simulations.claim import NO_GUARANTEE
from fedrho.sweeping import _text


def row(point: str, delta: float | None) -> dict[str, Any]:
    priced = None if delta is None else 3.0
    return {
        **{"point": point, "set.task": "x", "seed": 0, "accuracy": 0.5, "measured_on": "made-up", "delta": delta},
        **{"epsilon": priced, "simulation_only.training_loss": 1.0},
    }


@pytest.mark.parametrize(
    ("deltas", "said"),
    [
        ((1e-6, 1e-6), "epsilon, if deployed, at delta = 1e-06"),
        ((1e-6, 1e-7), "epsilon, if deployed, at delta = 1e-07 or 1e-06"),
        ((None, None), NO_GUARANTEE),
        ((None, 1e-6), f"epsilon, if deployed, at delta = 1e-06; points 0000: {NO_GUARANTEE}"),
        ((1e-6, None), f"epsilon, if deployed, at delta = 1e-06; points 0001: {NO_GUARANTEE}"),
    ],
)
def test_points_with_and_without_privacy_are_told_apart(deltas: tuple[float | None, ...], said: str) -> None:
    rows = [row(f"{number:04d}", delta) for number, delta in enumerate(deltas)]
    assert _text(rows)[-2] == f"accuracy on made-up; {said}"
