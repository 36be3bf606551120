"""Copies of the real data sets, where there are some: $FEDRHO_TEST_DATA, or shared/data beside the checkout. Never a network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedrho.simulations.data.cache import FOLDER
from fedrho.simulations.data.download import MIRROR

TOP = Path(__file__).parents[3]
COPIES = Path(os.environ.get("FEDRHO_TEST_DATA", TOP.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def linked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of links to the copies, in which arrays are decoded once for all tests."""
    if not COPIES.is_dir():
        pytest.skip(f"no copies of the data sets in {COPIES}; FEDRHO_TEST_DATA names another folder")
    folder = tmp_path_factory.mktemp("data")
    for file in COPIES.rglob("*"):
        if file.is_file():
            (folder / file.relative_to(COPIES)).parent.mkdir(parents=True, exist_ok=True)
            (folder / file.relative_to(COPIES)).symlink_to(file.resolve())
    return folder


@pytest.fixture
def copies(linked: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, as the data folder of this test."""
    monkeypatch.setenv(FOLDER, str(linked))
    return linked


@pytest.fixture(autouse=True)
def nothing_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the cache folder of whoever runs it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(MIRROR, raising=False)
    monkeypatch.setenv(FOLDER, str(tmp_path / "data"))
