"""The one-shot estimate where the truth is known: one Gaussian release."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedrho.privacy.auditing.limits import epsilon_between
from fedrho.privacy.auditing.one_shot import (
    cosines,
    estimate_from_all_steps,
    estimate_from_final_model,
    largest_cosines,
    random_directions,
)


def random(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def test_directions_are_unit_vectors_and_the_same_for_the_same_generator() -> None:
    one, two = random_directions(30, 1000, random(1)), random_directions(30, 1000, random(1))
    assert np.array_equal(one, two)
    assert np.linalg.norm(one, axis=1) == pytest.approx(np.ones(30))


def test_cosine_with_unseen_directions_has_variance_one_over_d() -> None:
    """2,000 cosines: mean within 6 / sqrt(2000 d), variance within 6 * sqrt(2 / 2000), relatively; once in 5e8 runs each."""
    size = 2000
    found = cosines(random_directions(2000, size, random(2)), np.ones(size))
    assert abs(found.mean()) < 6 / math.sqrt(2000 * size)
    assert found.var() * size == pytest.approx(1.0, abs=6 * math.sqrt(2 / 2000))


@pytest.mark.parametrize("multiplier", [0.5, 1.0, 4.0])
def test_estimate_for_one_gaussian_release_is_its_epsilon(multiplier: float) -> None:
    """Within four standard errors of mean and deviation, 1 / sqrt(c) and 1 / sqrt(2 c); one of 8,000 seeds would fail."""
    size, canaries = 10_000, 500
    directions = random_directions(canaries, size, random(3))
    released = directions.sum(axis=0) + multiplier * random(4).standard_normal(size)
    estimate = estimate_from_final_model(directions, released[None, :], 1e-3)
    # All canaries together lengthen the vector: the noise that one of them meets is a little more than the mechanism's.
    noise = math.sqrt(multiplier**2 + canaries / size)
    errors = [
        epsilon_between((1 + up / math.sqrt(canaries)) / noise, 1.0, 1.0 + wide / math.sqrt(2 * canaries), 1e-3)
        for up in (-4 * noise, 4 * noise)
        for wide in (-4, 0, 4)
    ]
    assert min(errors) < estimate.epsilon < max(errors)


def test_all_steps_show_what_the_sum_of_all_steps_hides() -> None:
    """A canary in one of 16 steps: 1 / multiplier there, a quarter of that in the sum."""
    size, steps = 3000, 16
    directions, unseen = random_directions(100, size, random(5)), random_directions(100, size, random(6))
    released = 0.25 * random(7).standard_normal((steps, size))
    released[3] += directions.sum(axis=0)
    final = estimate_from_final_model(directions, released, 1e-3)
    every = estimate_from_all_steps(directions, unseen, released, 1e-3)
    assert every.epsilon > 1.5 * final.epsilon
    nobody = estimate_from_all_steps(unseen, random_directions(100, size, random(8)), released, 1e-3)
    assert nobody.epsilon < every.epsilon / 4
    assert np.array_equal(largest_cosines(unseen, released), np.max([cosines(unseen, row) for row in released], axis=0))


def test_arrays_that_do_not_fit_are_refused() -> None:
    directions = random_directions(20, 1000, random(9))
    with pytest.raises(ValueError, match="directions"):
        estimate_from_final_model(directions, np.ones((3, 999)), 1e-3)
    with pytest.raises(ValueError, match="dimensions"):
        estimate_from_final_model(directions[:, :10], np.ones((3, 10)), 1e-3)
    with pytest.raises(ValueError, match="canaries"):
        estimate_from_final_model(directions[:3], np.ones((3, 1000)), 1e-3)
    with pytest.raises(ValueError, match="not zero"):
        estimate_from_final_model(directions, np.zeros((3, 1000)), 1e-3)
    with pytest.raises(ValueError, match="finite"):
        estimate_from_final_model(directions, np.full((3, 1000), np.nan), 1e-3)
