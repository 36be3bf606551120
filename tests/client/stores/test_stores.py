"""What holds for every ready store: the same examples, in the same order, opened where training is, and nothing kept."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fedrho.client.examples import ArrayExamples
from fedrho.client.stores.checked import DataFileError
from fedrho.models.base import ModelSpec
from tests.client.fleet import plan
from tests.client.stores.shelf import SPEC, STORES, X, Y, contents

EVERYTHING = sorted((int(label), tuple(row)) for label, row in zip(Y, X.tolist(), strict=True))
every_store = pytest.mark.parametrize("kind", STORES)


@every_store
def test_store_gives_every_example_once_an_epoch(kind: str, tmp_path: Path) -> None:
    store = STORES[kind](tmp_path)
    assert sorted(contents(store)) == EVERYTHING
    assert sorted(contents(store, epochs=2)) == sorted(EVERYTHING * 2)


@every_store
def test_order_and_choice_are_those_of_arrays(kind: str, tmp_path: Path) -> None:
    """All stores shuffle alike; the order of examples in the file is theirs alone."""
    store, arrays = STORES[kind](tmp_path), ArrayExamples(X, Y)
    for changes in ({"step": 3}, {"step": 4, "max_examples": 3}, {"epochs": 2, "batch_size": 3}):
        sizes = [[len(batch.labels) for batch in one.batches(plan(**changes))] for one in (store, arrays)]
        assert sizes[0] == sizes[1]
        assert contents(store, **changes) == contents(store, **changes)
        assert set(contents(store, **changes)) <= set(EVERYTHING)
    assert len({tuple(contents(store, step=step)) for step in range(1, 7)}) > 1


@every_store
def test_store_travels_light(kind: str, tmp_path: Path) -> None:
    store = STORES[kind](tmp_path)
    small = pickle.dumps(store)
    assert len(small) < 1000
    assert X[0].tobytes() not in small
    assert contents(pickle.loads(small)) == contents(store)


@pytest.mark.slow
def test_store_works_in_another_process(tmp_path: Path) -> None:
    store = STORES["csv"](tmp_path)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(contents, store).result(timeout=60) == contents(store)


@every_store
def test_file_is_opened_when_the_first_batch_is_asked_for(kind: str, tmp_path: Path) -> None:
    store = STORES[kind](tmp_path)
    for path in tmp_path.glob("mine*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    batches = store.batches(plan())
    with pytest.raises(DataFileError, match=str(tmp_path / "mine")):
        next(batches)


@every_store
def test_features_have_the_shape_of_the_model(kind: str, tmp_path: Path) -> None:
    (first, *_) = STORES[kind](tmp_path).batches(plan(batch_size=2))
    assert (first.features.shape, first.features.dtype) == ((2, 64), np.dtype(np.float32))


@pytest.mark.parametrize("other", [ModelSpec("narrow", "", (63,), 10, SPEC.build), ModelSpec("few", "", (64,), 9, SPEC.build)])
@every_store
def test_examples_that_the_model_does_not_take_are_refused_at_once(
    kind: str, other: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.client.stores.shelf.SPEC", other)
    with pytest.raises(DataFileError, match=rf"{tmp_path / 'mine'}.*{other.name}"):
        STORES[kind](tmp_path)
