"""What a study released about its devices before it trains, as a vocabulary of their words, and what of its rho is left."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fedrho.privacy.statement import PrivacyStatement, round_up
from fedrho.simulations.data.base import DataError
from fedrho.simulations.study import StudyFile

LEAST = 1e-9
"""Of what was spent before: what has to be left at least, for less is nothing but rounding."""


def after(file: StudyFile, before: PrivacyStatement) -> dict[str, Any]:
    """The values of the task with what is left of `privacy.rho`, which pays for both. Raises DataError where nothing is left, or
    where what a study claims besides does not hold with `before`.
    """
    if file.sampling is not None:
        raise DataError("data.vocabulary: 'private' is priced in rho, and Poisson sampling has none; take a public list")
    if "labels" in file.task:
        raise DataError(
            "data.vocabulary: 'private' words are chosen by the labels, too; leave task.labels out, or take a public list"
        )
    privacy = file.task.get("privacy")
    total = privacy.get("rho") if isinstance(privacy, Mapping) else None
    if not isinstance(privacy, Mapping) or isinstance(total, bool) or not isinstance(total, (int, float)):
        raise DataError("task.privacy.rho: missing, or no number; the private vocabulary of the data is paid from it")
    if not before.rho * (1.0 + LEAST) < total < math.inf:
        spent = round_up(before.rho)
        raise DataError(
            f"task.privacy.rho: {total:g} leaves nothing for training, for the private vocabulary costs {spent} of it; "
            f"allowed: above {spent}"
        )
    return {**file.task, "privacy": {**privacy, "rho": rest(total, before.rho)}}


def rest(total: float, spent: float) -> float:
    """The largest rho that with `spent` makes no more than `total`, in floating point too; 0 < spent < total."""
    left = total - spent
    while left + spent > total:
        left = math.nextafter(left, 0.0)
    return left
