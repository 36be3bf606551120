"""A vocabulary chosen by private words is in the study's budget, its rows and its statement."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrho.models import tokens
from fedrho.models.tokens import Tokens
from fedrho.models.zoo import lookup
from fedrho.privacy.statement import PrivacyStatement
from fedrho.simulations.before import rest
from fedrho.simulations.checks import check_tokens
from fedrho.simulations.data.base import DataError, DataSource, FederatedDataset
from fedrho.simulations.data.catalogue import open_data
from fedrho.simulations.data.options import Options
from fedrho.simulations.data.sequences import SequenceOptions, Sequences
from fedrho.simulations.data.streams import streams
from fedrho.simulations.data.vocabularies import PrivateWords
from fedrho.simulations.nonprivate import ALGORITHM, NONE
from fedrho.simulations.results import own_words
from fedrho.simulations.study import Study, StudyError, make_study
from tests.simulations.toy_study import DATA, run_toy, study_values

PRIVATE = {"name": "caldracor", "vocabulary": "private", "vocabulary_rho": 0.25}


def private_study(data: dict[str, Any] = PRIVATE, **task: Any) -> tuple[Study, FederatedDataset]:
    """Of devices that are made up: what the words cost is known without the text."""
    values = study_values(data=data)
    values["task"] |= task
    return make_study(values, "study.toml", Path(), (DataSource.of(data), open_data(DataSource.of(DATA))))


def refused(**changes: Any) -> str:
    with pytest.raises(StudyError) as error:
        private_study(**changes)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_training_gets_what_the_vocabulary_leaves_and_both_are_claimed(tmp_path: Path) -> None:
    total = study_values()["task"]["privacy"]["rho"]
    study, dataset = private_study()
    assert study.task.budget == rest(total, 0.25) == pytest.approx(total - 0.25)
    assert tomllib.loads(study.text())["task"]["privacy"]["rho"] == total  # the file says the same when it is read again
    assert tomllib.loads(study.task_text() or "")["privacy"]["rho"] == study.task.budget
    run = run_toy(tmp_path / "out", study, dataset)
    claim = run.statement.claim
    assert isinstance(claim, PrivacyStatement)
    trained = study.task.mechanism.cost(study.steps, study.task.participation)
    assert claim.rho == pytest.approx(0.25 + trained)
    assert claim.rho <= total
    assert run.rows[-1]["rho"] == pytest.approx(claim.rho)
    assert run.rows[0]["rho"] > 0.25
    assert any(text.startswith("vocabulary: each device adds at most once to the histogram") for text in claim.assumptions)
    assert any("nor the settings of the task, but for the vocabulary, were chosen with" in text for text in claim.assumptions)
    assert "add that rho to what it claims" in (study.task_text() or "")
    assert (study.task_text() or "").startswith(f"# privacy.rho is what the vocabulary left of {total:g}")
    assert json.loads((tmp_path / "out" / "statement.json").read_bytes())["if_deployed"]["rho"] == claim.rho


def test_a_study_without_privacy_claims_nothing_and_is_charged_nothing() -> None:
    study, _ = private_study(algorithm=ALGORITHM, privacy=NONE, round={"goal": 5}, participation={"max_times": 8})
    assert study.before is None


def test_what_the_price_does_not_cover_is_refused() -> None:
    privacy = study_values()["task"]["privacy"]
    spent = "task.privacy.rho: 0.25 leaves nothing for training, for the private vocabulary costs 0.25 of it; allowed: above 0.25"
    assert spent in refused(privacy={**privacy, "rho": 0.25})
    assert "task.privacy.rho: missing, or no number" in refused(privacy={"clip_norm": 1.0})
    assert "task.privacy.rho: missing, or no number" in refused(privacy={**privacy, "rho": "much"})
    assert "data.vocabulary: 'private' words are chosen by the labels, too" in refused(labels={"epsilon": 1.0})
    values = study_values(data=PRIVATE, sampling={"kind": "poisson", "epsilon": 1.0})
    with pytest.raises(StudyError, match=r"data\.vocabulary: 'private' is priced in rho, and Poisson sampling has none"):
        make_study(values, "study.toml", Path(), (DataSource.of(PRIVATE), open_data(DataSource.of(DATA))))


@given(st.floats(1e-9, 1e6), st.floats(1e-9, 1e6))
def test_the_rest_and_what_was_spent_never_exceed_the_budget(one: float, other: float) -> None:
    spent, total = sorted((one, other))
    if spent < total:
        left = rest(total, spent)
        assert left >= 0
        assert left + spent <= total


def test_a_model_is_trained_on_the_tokens_that_it_reads_or_on_a_list_that_is_written_down() -> None:
    """Two people who say ten words each; the model reads 2,048 of the parliament."""
    model = lookup("words-cifg")
    arrays = streams({name: [np.arange(2, 12, dtype=np.uint16)] for name in ("a", "b")}, 0)
    options = SequenceOptions(Options(DataSource("toy")), 20)

    def told(read_as: Tokens) -> Sequences:
        return Sequences(arrays, ["a", "b"], options, read_as)

    check_tokens(model, told(tokens.lookup("spanish-parliament")), "toy")
    with pytest.raises(DataError, match="words-cifg reads spanish-parliament, and data 'toy' are hashed-2048 with these options"):
        check_tokens(model, told(tokens.lookup("hashed-2048")), "toy")
    assert own_words(told(tokens.lookup("spanish-parliament"))) is None
    chosen = PrivateWords("spanish-parliament", 1.0, 3, 3, 0).kept(["luna", "sol", "mar"])
    check_tokens(model, told(chosen), "toy")
    assert own_words(told(chosen)) == b"luna\nsol\nmar\n"
