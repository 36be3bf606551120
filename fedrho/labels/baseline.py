"""DP-SGD beside label privacy: it protects whole examples, hence their labels; its epsilon is of the same substitution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedrho.console import BadInput
from fedrho.labels.answered import MOST_DELTA
from fedrho.labels.data import LabelData
from fedrho.labels.settings import DpSgdSection
from fedrho.privacy.labels.chance import SystemChance
from fedrho.privacy.labels.statement import LabelStatement
from fedrho.privacy.noise import SystemNoise
from fedrho.privacy.vectors import FloatVector

if TYPE_CHECKING:
    from fedrho.privacy.labels.dp_sgd import DpSgdCost

Tell = Callable[[int, int, float], None]
ASSUMPTIONS = (
    "the number of records, the features' shape, the classes and all settings are public, and were chosen without these labels",
    "Poisson samples and Gaussian noise are from the operating system's generator; the noise is in floating point",
    "the claim is about one record; of a person with several nothing is claimed",
    "substitution of a whole example: stronger than of its label, and with a delta; not the same claim as a pure epsilon",
)


class DpSgd:
    """Trains one model again and again: what is compiled for one epsilon serves the next of equal settings."""

    def __init__(self, spec: Any, tell: Tell | None = None) -> None:
        self._spec, self._tell = spec, tell
        self._trainers: dict[str, Any] = {}

    def trained(
        self, data: LabelData, places: NDArray[np.int64], section: DpSgdSection, epsilon: float, seed: int
    ) -> FloatVector:
        """From true labels; the seed is of the first weights alone."""
        from fedrho.models.dp_sgd import DpSgdSettings, DpSgdTrainer
        from fedrho.models.fit_settings import Schedule

        spent = cost(section, epsilon, len(places))
        settings = DpSgdSettings(
            noise_multiplier=spent.noise_multiplier,
            clip_norm=section.clip_norm,
            rate=spent.rate,
            steps=section.steps,
            learning_rate=section.learning_rate,
            momentum=section.momentum,
            schedule=Schedule(section.schedule),
            ramp=section.ramp,
        )
        key = repr(settings)
        if key not in self._trainers:
            self._trainers[key] = DpSgdTrainer(self._spec, settings, self._tell)
        weights: FloatVector = self._trainers[key].fit(data.features[places], data.labels[places], seed, _normals, _uniforms)
        return weights


GRID = 2.0**24
"""Steps of noise to its standard deviation."""


def _normals(count: int) -> NDArray[np.float64]:
    """From a seed of the operating system, which is not kept."""
    drawn, _ = SystemNoise().draw("dp-sgd", count, GRID)
    return drawn / GRID


def _uniforms(count: int) -> NDArray[np.float64]:
    return (SystemChance().words(count) >> np.uint64(11)) / 2.0**53


def cost(section: DpSgdSection, epsilon: float, records: int) -> DpSgdCost:
    """The least noise that keeps epsilon at the section's delta; raises BadInput where there is none."""
    from fedrho.privacy.labels.dp_sgd import least_noise

    try:
        return least_noise(epsilon, section.delta, min(1.0, section.batch / records), section.steps)
    except ValueError as error:
        raise BadInput(f"DP-SGD at epsilon {epsilon:g}: {error}") from error


def statement(section: DpSgdSection, epsilon: float, records: int, times: int, more: Sequence[str]) -> LabelStatement:
    """What the noise really costs; `times` it was trained, where earlier weights were lost and their labels read all the same."""
    spent = cost(section, epsilon, records)
    one = spent.epsilon(section.delta)
    told = (
        f"DP-SGD, {section.steps} steps of Poisson samples of rate {spent.rate:.4g}, clip norm {section.clip_norm:g}, "
        f"noise multiplier {spent.noise_multiplier:.4g}; add-or-remove epsilon {spent.add_or_remove_epsilon(section.delta):.4g}",
    )
    return LabelStatement(times * one, min(times * section.delta, MOST_DELTA), told * times, (*ASSUMPTIONS, *more))
