"""Clusters of records are made of public features: plain, in principal coordinates, or as an encoder sees them."""

from __future__ import annotations

import numpy as np
import pytest

from fedrho.console import BadInput
from fedrho.labels.grouping import groups
from fedrho.labels.settings import StageSection

FEATURES = np.random.default_rng(0).normal(size=(60, 4, 4, 1)).astype(np.float32)


def section(**values: object) -> StageSection:
    return StageSection.model_validate({"prior": "clusters", "clusters": 5, **values})


def test_groups_are_the_same_every_time_and_in_all_coordinates() -> None:
    chosen = groups(FEATURES, section(), 3)
    np.testing.assert_array_equal(chosen, groups(FEATURES.reshape(60, 16), section(), 3))
    assert set(groups(FEATURES, section(coordinates=2), 3).tolist()) == set(range(5))


def test_what_cannot_be_grouped_is_refused() -> None:
    for bad, said in (({"clusters": 61}, "60 groups"), ({"coordinates": 17}, "16 principal")):
        with pytest.raises(BadInput, match=said):
            groups(FEATURES, section(**bad), 3)
    with pytest.raises(BadInput, match="images"):
        groups(FEATURES.reshape(60, 16), section(simclr=5), 3)


@pytest.mark.slow
def test_an_encoder_s_vectors_are_grouped() -> None:
    told: list[tuple[int, int]] = []
    assert len(groups(FEATURES, section(simclr=2), 3, lambda done, steps, loss: told.append((done, steps)))) == 60
    assert told[-1] == (2, 2)
