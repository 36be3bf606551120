"""What a simulation says of each step, and what it keeps in order to go on with the same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrho.privacy.noise import KeptVector, NoiseNode
from fedrho.privacy.zcdp import Rho
from fedrho.server.ledger import Charge
from fedrho.server.release import Stored
from fedrho.simulations.engines.base import Told

Values = Mapping[str, Any]
Arrays = Mapping[str, NDArray[Any]]


class BadState(ValueError):
    """A state that is no state of this study: what is missing or other, in one line."""


@dataclass(frozen=True)
class SimulationOnly:
    """What no real server could see, of one step. None where nobody was counted, or an engine does not say.

    `loss` is the mean over devices of their training loss; norms are L2, before clipping; shares are of the counted devices.
    """

    loss: float | None
    median_norm: float | None
    largest_norm: float | None
    clipped_share: float | None
    failed: int
    examples: int

    @staticmethod
    def of(told: Told, clip_norm: float) -> SimulationOnly:
        """Of the counted devices; the same whatever order they came in."""
        if not len(told.norm):
            return SimulationOnly(None, None, None, None, 0, 0)
        known, norms = np.sort(told.loss[~np.isnan(told.loss)]), np.sort(told.norm)
        count = len(norms)
        return SimulationOnly(
            loss=float(known.mean()) if len(known) else None,
            median_norm=float(norms[(count - 1) // 2] + norms[count // 2]) / 2.0,
            largest_norm=float(norms[-1]),
            clipped_share=float(np.count_nonzero(norms > clip_norm)) / count,
            failed=int(told.failed.sum()),
            examples=int(told.examples.sum()),
        )


@dataclass(frozen=True)
class StepRecord:
    """One release, as a real server could see it; times are virtual.

    `seconds` is when it was made, since the start; `seats` were given out in the attempt that led to it, and `dropped` of those
    who had their chance did not come; `abandoned` attempts went before it. `rho` is the price of everything released so far.
    Under Poisson sampling there is neither: no time passes, and no rho has that curve. `node_stddev` is that of one node's noise
    in the mean, `sum_stddev` that of the noise in the sum of all means since the start, both in units of the weights; `mean_norm`
    is the L2 norm of the released mean.
    """

    step: int
    attempt: int
    seconds: float | None
    counted: int
    seats: int
    dropped: int
    abandoned: int
    rho: float | None
    node_stddev: float
    sum_stddev: float
    mean_norm: float
    simulation_only: SimulationOnly


@dataclass(frozen=True, eq=False)
class State:
    """Everything that a simulation needs in order to go on after a step: numbers and texts for JSON, and arrays by name.

    It holds seeds of noise: those of a simulation are no secret.
    """

    values: Values = field(repr=False)
    arrays: Arrays = field(repr=False)

    @property
    def step(self) -> int:
        """Steps released so far."""
        return int(self.values["step"])

    @property
    def weights(self) -> NDArray[np.float32]:
        return self.arrays["weights"]

    def check(self, kind: str, study: str) -> None:
        """Raises BadState unless it was made by a simulation of this kind, of the study with this fingerprint."""
        if self.values.get("kind") != kind:
            raise BadState("only one of the state and this study has Poisson sampling; begin anew, in another folder")
        if self.values.get("study") != study:
            raise BadState("the state is of another study: its task, seed or availability differ; begin anew, in another folder")

    def same(self, other: State) -> bool:
        """Whether the two agree to the bit."""
        return (
            dict(self.values) == dict(other.values)
            and self.arrays.keys() == other.arrays.keys()
            and all(_bytes(self.arrays[name]) == _bytes(other.arrays[name]) for name in self.arrays)
        )


def _bytes(array: NDArray[Any]) -> tuple[str, tuple[int, ...], bytes]:
    return array.dtype.str, array.shape, array.tobytes()


def fingerprint(*parts: object) -> str:
    """Of whatever decides what happens: equal for equal representations."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def packed(stored: Stored) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """A run's latest commit as values and arrays."""
    values = {
        "run": stored.run.hex(),
        "tag_key": stored.tag_key.hex(),
        "step": stored.charge.step,
        "rho": float(stored.charge.rho),
        "nodes": [[node.name, node.seed.hex(), node.digest.hex()] for node in stored.nodes],
        "kept": [one.name for one in stored.kept],
    }
    arrays: dict[str, NDArray[Any]] = {"weights": stored.weights, "velocity": stored.velocity}
    arrays |= {f"kept.{place}": one.vector for place, one in enumerate(stored.kept)}
    tags = b"".join(tag for tag, _ in stored.participations)
    arrays["tags"] = np.frombuffer(tags, dtype=np.uint8).reshape(len(stored.participations), -1 if tags else 0)
    arrays["tagged_steps"] = np.array([step for _, step in stored.participations], dtype=np.int64)
    return values, arrays


def unpacked(state: State) -> Stored:
    """What `packed` made values and arrays of; raises BadState."""
    values, arrays = state.values, state.arrays
    try:
        return Stored(
            run=bytes.fromhex(values["run"]),
            tag_key=bytes.fromhex(values["tag_key"]),
            charge=Charge(int(values["step"]), Rho(float(values["rho"]))),
            weights=np.ascontiguousarray(arrays["weights"], dtype=np.float32),
            velocity=np.ascontiguousarray(arrays["velocity"], dtype=np.float64),
            nodes=tuple(NoiseNode(name, bytes.fromhex(seed), bytes.fromhex(digest)) for name, seed, digest in values["nodes"]),
            participations=tuple(
                (tag.tobytes(), int(step)) for tag, step in zip(arrays["tags"], arrays["tagged_steps"], strict=True)
            ),
            kept=tuple(KeptVector(name, arrays[f"kept.{place}"]) for place, name in enumerate(values["kept"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadState(f"the state of the simulation cannot be read: {type(error).__name__}: {error}") from error
