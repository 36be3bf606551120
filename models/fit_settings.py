"""How a classifier is trained on likelihoods: optimizer, schedule, batches, mixup, augmentation, reweighting. No TensorFlow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray


class FitError(ValueError):
    """Settings that no training could follow, or that do not suit the model or the examples."""


class Schedule(Enum):
    """How the learning rate goes on after its ramp, by the share of all steps that is done."""

    LINEAR = "linear"
    """To 0 in a straight line: MNIST and its likes in Ghazi et al. 2021, appendix E."""
    STEPS = "steps"
    """A tenth at 30, 60 and 90 %: as the article says of CIFAR-10."""
    STEPS_AS_RUN = "steps-as-run"
    """A tenth at 45 and 75 %, and never a third time: what the article's public code does, whose joined schedule counts its
    steps anew after the ramp."""
    CONSTANT = "constant"


DROPS = {Schedule.STEPS: (0.3, 0.6, 0.9), Schedule.STEPS_AS_RUN: (0.45, 0.75), Schedule.CONSTANT: ()}


@dataclass(frozen=True)
class Reweighting:
    """Constrained instance reweighting, and class reweighting where `gamma` is above 0 (Kumar & Amid 2021, arXiv 2111.05428).

    In each batch a record of loss l weighs exp(-l / temperature), as the nearest weights in a ball of Kullback and Leibler do;
    or, with `alpha` below 1, max((1 - alpha) l + temperature, 0) ** (1 / (alpha - 1)). Class weights within an L1 ball make l
    (1 - gamma) times its own plus gamma times the least cross-entropy of any class. Mixup then takes partners by weight, and
    the batch counts evenly; without mixup it counts by weight. It begins after `burn_in`, a share of the steps; from there
    the temperature falls from ten times its value to itself, over three quarters of the burn-in's length, as in public code.
    """

    temperature: float = 1.0
    alpha: float = 1.0
    gamma: float = 0.0
    burn_in: float = 0.2

    def __post_init__(self) -> None:
        _check(0 < self.temperature < math.inf, f"reweighting: a temperature is finite and above 0, not {self.temperature}")
        _check(0 <= self.alpha <= 1, f"reweighting: alpha lies in [0, 1], not {self.alpha}")
        _check(0 <= self.gamma <= 1, f"reweighting: gamma lies in [0, 1], not {self.gamma}")
        _check(0 <= self.burn_in < 1, f"reweighting: the burn-in is a share of the steps in [0, 1), not {self.burn_in}")

    def temperatures(self, steps: int) -> NDArray[np.float32]:
        """For each step, and infinite while it burns in."""
        burnt = self.burn_in * steps
        along = np.clip((np.arange(steps) - burnt) / max(0.75 * burnt, 1e-9), 0.0, 1.0)
        falling = self.temperature * (10.0 - 9.0 * along) if burnt else np.full(steps, self.temperature)
        return np.where(np.arange(steps) < burnt, np.inf, falling).astype(np.float32)


@dataclass(frozen=True)
class FitSettings:
    """SGD with Nesterov momentum (of public JAX code: the rate multiplies the whole step).

    Exactly one of `steps` and `epochs` is above 0. `ramp` is the share of the steps over which the rate rises in a straight line.
    `weight_decay` times a kernel is added to its gradient; biases and scales decay not. `mixup` is alpha of Beta(alpha, alpha),
    one lambda a batch, and 0 for none. `crop` pads images by so many pixels of zeros and cuts at a random place, `flip` mirrors
    half of them left to right, `cutout` blanks a square of that side. Raises FitError.
    """

    learning_rate: float = 0.1
    batch: int = 128
    steps: int = 0
    epochs: float = 0.0
    momentum: float = 0.9
    schedule: Schedule = Schedule.LINEAR
    ramp: float = 0.15
    weight_decay: float = 1e-4
    mixup: float = 0.0
    crop: int = 0
    flip: bool = False
    cutout: int = 0
    reweighting: Reweighting | None = None

    def __post_init__(self) -> None:
        _check(0 < self.learning_rate < math.inf, f"a learning rate is finite and above 0, not {self.learning_rate}")
        _check(self.batch > 0, f"a batch has one record at least, not {self.batch}")
        _check(self.steps >= 0 and 0 <= self.epochs < math.inf, "steps and epochs are finite and not negative")
        _check((self.steps > 0) != (self.epochs > 0), "give the steps or the epochs, one of the two")
        _check(0 <= self.momentum < 1, f"a momentum lies in [0, 1), not {self.momentum}")
        _check(0 <= self.ramp < 1, f"the ramp is a share of the steps in [0, 1), not {self.ramp}")
        _check(0 <= self.weight_decay < math.inf, f"a weight decay is finite and not negative, not {self.weight_decay}")
        _check(0 <= self.mixup < math.inf, f"mixup's alpha is finite and not negative, not {self.mixup}")
        _check(self.crop >= 0 and self.cutout >= 0, "crop and cutout are pixels, not negative")

    @property
    def augments(self) -> bool:
        return bool(self.crop or self.flip or self.cutout)

    def steps_for(self, records: int) -> int:
        return self.steps or max(1, round(self.epochs * records / self.batch))

    def rates(self, steps: int) -> NDArray[np.float32]:
        """The learning rate of each step."""
        done = (np.arange(steps) + 1.0) / steps
        rise = np.minimum(done / self.ramp, 1.0) if self.ramp else np.ones(steps)
        if self.schedule is Schedule.LINEAR:
            fall = np.minimum((1.0 + 1.0 / steps - done) / (1.0 - self.ramp), 1.0)
        else:
            fall = 0.1 ** sum((done > at).astype(float) for at in DROPS[self.schedule]) * np.ones(steps)
        return (self.learning_rate * rise * fall).astype(np.float32)


def orders(records: int, steps: int, batch: int, random: np.random.Generator) -> NDArray[np.int32]:
    """Places of the records of each step's batch, of shape (steps, batch): every record once before any comes again."""
    rounds = -(-steps * batch // records)
    places = np.tile(np.arange(records, dtype=np.int32), (rounds, 1))
    return random.permuted(places, axis=1, out=places).reshape(-1)[: steps * batch].reshape(steps, batch)


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise FitError(otherwise)
