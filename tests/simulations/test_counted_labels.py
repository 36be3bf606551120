"""Labels at every place in simulations: trained as devices train, measured over the labels that count, refused where unfit."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from fedrho.client.labels import _check
from fedrho.models import base
from fedrho.models.classifier import KerasClassifier
from fedrho.models.fit_settings import FitError
from fedrho.privacy.vectors import pack
from fedrho.server.tasks import TaskError, build_task
from fedrho.simulations.checks import check_labels, check_model
from fedrho.simulations.data.base import DataError, Examples
from fedrho.simulations.engines import base as engines
from fedrho.simulations.engines.serial import Serial
from fedrho.simulations.worker import check_examples
from tests.models.test_counting import EVERY_PLACE, WORDS, plain, texts
from tests.simulations.held import LOGISTIC, Held, as_a_device, some_weights, workload
from tests.simulations.toy_study import toy_study

SPEC = replace(EVERY_PLACE, name="test-bigrams")
SIZE = 2 * WORDS * 3 + WORDS
PLAN = replace(LOGISTIC, model=SPEC.name, size=SIZE, epochs=2)
DEVICES = [Examples(*texts(SPEC, count, seed)) for seed, count in enumerate((1, 3, 9, 17))]
HELD_OUT = Examples(*texts(SPEC, 1500, 99))
WEIGHTS = some_weights(SIZE)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(base._REGISTRY, SPEC.name, SPEC)


@pytest.mark.parametrize("vectorised", [False, True])
def test_an_engine_trains_as_devices_do_and_measures_the_labels_that_count(vectorised: bool) -> None:
    engine = Serial(workload(PLAN, vectorised), Held(DEVICES, HELD_OUT))
    trained = engine.train(1, WEIGHTS, [0, 1, 2, 3])
    uploads = np.sum([as_a_device(PLAN, WEIGHTS, device) for device in DEVICES], axis=0, dtype=np.int64)
    found = np.frombuffer(pack(trained.total), dtype="<i8")
    assert np.abs(found - uploads).max() <= (8 if vectorised else 0)
    assert uploads.any()
    assert not trained.told.failed.any()  # the first device has no label that counts: its update is zero, and nothing failed
    assert trained.told.norm[0] == 0.0
    tested = engine.test(WEIGHTS)
    loss, _, right, counted = plain(SPEC, WEIGHTS, *texts(SPEC, 1500, 99))
    assert (tested.correct, tested.examples, tested.counted) == (right, 1500, counted)  # in two units
    assert tested.loss == pytest.approx(loss, rel=1e-5)
    assert tested.accuracy == right / counted


def test_parts_of_a_test_weigh_as_many_labels_as_they_count() -> None:
    assert engines.joined(
        [engines.Tested(1, 10, 2.0, 4), engines.Tested(2, 10, 9.0, 0), engines.Tested(3, 1, 1.0, 12)]
    ) == engines.Tested(6, 21, 1.25, 16)


def test_labels_of_another_shape_are_refused_before_anything_is_trained() -> None:
    one = Examples(HELD_OUT.features, HELD_OUT.labels[:, 0])
    with pytest.raises(
        DataError, match=re.escape("labels of an example are of shape (); those of model 'test-bigrams' of shape (5,)")
    ):
        check_examples(SPEC, one)
    with pytest.raises(DataError, match=re.escape("test-bigrams has labels of shape (5,); device 3 have labels of shape ()")):
        check_model(SPEC, one, "device 3")
    check_examples(SPEC, HELD_OUT)
    check_model(SPEC, HELD_OUT, "device 3")


def test_there_is_no_label_privacy_for_a_label_at_every_place() -> None:
    study, _ = toy_study()
    task = replace(study.task, file=study.task.file.model_validate({**study.task.file.model_dump(), "labels": {"epsilon": 1.0}}))
    terms = task.labels
    assert terms is not None
    says = "model 'test-bigrams' has a label at every place of an example; label privacy is for one label an example"
    with pytest.raises(DataError, match=f"task.labels.epsilon: {says}"):
        check_labels(replace(study, planned=task), SPEC)
    with pytest.raises(TaskError, match=f"labels.epsilon: {says}"):
        build_task(task.file.model_copy(update={"model": SPEC.name}))
    with pytest.raises(ValueError, match=says):
        _check(terms, SPEC)  # a device, whatever a server asks for
    with pytest.raises(FitError, match=says):
        KerasClassifier(SPEC)
