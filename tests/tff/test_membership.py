"""Our membership attacks against TensorFlow Privacy's, on a model that learned by heart and on one that did not.

The tff extra takes the last release that has them; see `fedrho.privacy.auditing.membership_tfp`.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from fedrho import cli
from fedrho.privacy.auditing.membership import MembershipReport, membership_report
from fedrho.privacy.auditing.membership_tfp import tensorflow_privacy_attacks
from fedrho.privacy.zcdp import Rho
from tests.docs import shell
from tests.docs.pages import blocks_of

pytestmark = [
    pytest.mark.tff,
    # Of the scikit-learn that TensorFlow Privacy needs, under a newer scipy.
    pytest.mark.filterwarnings("ignore:scipy.optimize:DeprecationWarning"),
]

CLASSES, TRAINED, OTHERS = 4, 600, 500


def predictions(confidence_trained: float, confidence_others: float) -> dict[str, NDArray[Any]]:
    """Logits of noise, and so much more for the right class."""
    random = np.random.Generator(np.random.PCG64(61))
    given: dict[str, NDArray[Any]] = {}
    for part, count, confidence in (("train", TRAINED, confidence_trained), ("test", OTHERS, confidence_others)):
        labels = random.integers(0, CLASSES, count)
        given[f"{part}_logits"] = random.standard_normal((count, CLASSES)) + confidence * np.eye(CLASSES)[labels]
        given[f"{part}_labels"] = labels
    return given


def theirs_beside_ours(given: dict[str, NDArray[Any]], by_class: bool = False) -> tuple[MembershipReport, MembershipReport]:
    theirs = membership_report(given, Rho(0.25), attacks=tensorflow_privacy_attacks, by_class=by_class)
    return theirs, membership_report(given, Rho(0.25), by_class=by_class)


@pytest.mark.parametrize("confidence", [1.5, 2.0, 6.0])
def test_both_see_the_same(confidence: float) -> None:
    """The threshold attack has nothing to learn and is equal; the regressions differ in regularisation and halves."""
    theirs, ours = theirs_beside_ours(predictions(confidence, 1.5))
    assert theirs.results[0].outcome.auc == pytest.approx(ours.results[0].outcome.auc, abs=1e-9)
    assert theirs.results[0].outcome.advantage == pytest.approx(ours.results[0].outcome.advantage, abs=1e-9)
    assert theirs.results[1].outcome.auc == pytest.approx(ours.results[1].outcome.auc, abs=0.05)
    assert theirs.contradicts_claim == ours.contradicts_claim == (confidence == 6.0)


def test_both_attack_the_same_classes() -> None:
    given = predictions(6.0, 1.0)
    given["test_labels"] = np.where(given["test_labels"] == 3, 0, given["test_labels"])
    theirs, ours = theirs_beside_ours(given, by_class=True)
    named = [{(one.outcome.attack, one.outcome.examples) for one in report.results} for report in (theirs, ours)]
    assert named[0] == named[1]


def test_numpys_global_generator_is_left_as_it_was() -> None:
    np.random.seed(5)
    expected = np.random.random()
    np.random.seed(5)
    membership_report(predictions(3.0, 2.0), attacks=tensorflow_privacy_attacks, seed=3)
    assert np.random.random() == expected


def test_the_command_of_the_page_asks_tensorflow_privacy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its environment is the one that this test is in."""
    monkeypatch.chdir(tmp_path)
    np.savez("predictions.npz", **predictions(1.5, 1.5))  # type: ignore[arg-type]
    (line,) = [line for block in blocks_of("auditing.md", "sh") for line in shell.lines(block) if "--tensorflow-privacy" in line]
    environment, _, command = line.partition(" uv run --python 3.11 --extra tff ")
    assert environment == "UV_PROJECT_ENVIRONMENT=.venv-tff"
    result = CliRunner().invoke(cli.app, shlex.split(command)[1:])
    assert result.exit_code == 0, result.output
    assert [row.split()[0] for row in result.output.splitlines()[1:3]] == ["threshold", "logistic"]
