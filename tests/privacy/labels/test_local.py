"""Terms of answers that devices give for themselves: what is refused, what is exact, and what may be claimed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fedrho.privacy.labels.local import WITH_PRIOR, check_classes, check_terms, local_statement, randomizer, rows_of
from fedrho.privacy.statement import Neighbours, Unit, compose


@pytest.mark.parametrize("epsilon", [1e-6, 0.5, math.log(9), 8.0, 700.0])
@pytest.mark.parametrize("prior", [(), (0.5, 0.3, 0.2, 0.0), (0.97, 0.01, 0.01, 0.01), (1.0, 0.0, 0.0, 0.0)])
def test_no_prior_makes_an_answer_tell_more_than_epsilon(epsilon: float, prior: tuple[float, ...]) -> None:
    (matrix,) = randomizer(WITH_PRIOR, epsilon).matrix(rows_of(prior, 1, 4))
    assert np.allclose(matrix.sum(axis=1), 1.0)
    told = matrix[:, matrix.max(axis=0) > 0]
    assert (told > 0).all()
    assert np.log(told.max(axis=0) / told.min(axis=0)).max() <= epsilon + 1e-9


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"mechanism": "laplace"}, "mechanism: unknown, 'laplace'"),
        ({"correction": "backward"}, "correction: unknown"),
        ({"epsilon": 0.0}, "epsilon: must be finite and above 0"),
        ({"epsilon": math.nan}, "epsilon: must be finite"),
        ({"epsilon": math.inf}, "epsilon: must be finite"),
        ({"prior": (0.5, 0.6)}, "prior: probabilities must add up to 1, not 1.1"),
        ({"prior": (1.5, -0.5)}, "prior: each probability must be finite and not negative"),
        ({"prior": (math.nan, 1.0)}, "prior: each probability must be finite"),
    ],
)
def test_terms_that_make_no_sense_are_refused(wrong: dict[str, Any], expected: str) -> None:
    terms: dict[str, Any] = {"mechanism": WITH_PRIOR, "epsilon": 1.0, "prior": (), "correction": "forward"}
    check_terms(**terms)
    with pytest.raises(ValueError, match=expected):
        check_terms(**(terms | wrong))


def test_prior_of_other_classes_and_too_many_likelihoods_are_refused() -> None:
    with pytest.raises(ValueError, match="prior: has 2 probabilities, for 3 classes"):
        rows_of((0.5, 0.5), 4, 3)
    assert rows_of((), 2, 4).tolist() == [[0.25] * 4] * 2
    check_classes("words", 50_000, "none")
    with pytest.raises(ValueError, match="correction: model 'words' has 50000 classes"):
        check_classes("words", 50_000, "forward")


def test_statement_is_about_one_label_and_cannot_be_added_to_another() -> None:
    said = local_statement(WITH_PRIOR, 2.0, ())
    assert (said.unit, said.neighbours, said.epsilon, said.delta) == (Unit.LABEL, Neighbours.REPLACE, 2.0, 0.0)
    text = " ".join(said.assumptions)
    for part in ("m labels has m times the epsilon", "nothing amplifies it", "answered once", "about features nothing"):
        assert part in text
    with pytest.raises((ValueError, AttributeError)):
        compose([said])  # type: ignore[list-item]
