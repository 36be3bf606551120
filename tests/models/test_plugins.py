"""Models of other packages, as an installation announces them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedrho.models.base import UnknownModel
from fedrho.models.zoo import lookup, names

MODULE = """
from fedrho.models.base import ModelSpec
def build(): raise AssertionError("nobody has asked for it to be built")
def good(): return ModelSpec("good", "fine", (4,), 2, build)
def raising(): raise RuntimeError("two\\nlines")
def other(): return ModelSpec("another-name", "fine", (4,), 2, build)
def nothing(): pass
"""
POINTS = """[fedrho.models]
good = {module}:good
raising = {module}:raising
other = {module}:other
nothing = {module}:nothing
missing = {module}:not_there
digits-mlp = {module}:good
"""


def install(folder: Path, name: str, points: str) -> None:
    """What pip leaves behind, as far as entry points go."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(points)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models_of_a_test.py").write_text(MODULE)
    install(tmp_path, "models-of-a-test", POINTS.format(module="models_of_a_test"))
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_model_of_a_package_is_found_by_its_entry_point(package: Path) -> None:
    assert (lookup("good").input_shape, lookup("good").classes) == ((4,), 2)
    assert {"good", "digits-logistic"} <= set(names())


def test_model_that_ships_is_not_replaced_by_a_package(package: Path) -> None:
    assert lookup("digits-mlp").input_shape == (64,)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("raising", "raised RuntimeError: two lines"),
        ("other", "must return a ModelSpec of that name"),
        ("nothing", "must return a ModelSpec of that name"),
        ("missing", "raised AttributeError"),
        ("unheard-of", "unknown model 'unheard-of'; known models: .*good"),
    ],
)
def test_entry_point_that_gives_no_such_model_is_refused_in_one_line(package: Path, name: str, reason: str) -> None:
    with pytest.raises(UnknownModel, match=reason) as refused:
        lookup(name)
    assert "\n" not in str(refused.value)


def test_name_that_two_packages_have_is_refused(package: Path) -> None:
    install(package, "more-models", "[fedrho.models]\ngood = models_of_a_test:other\n")
    with pytest.raises(UnknownModel, match="several packages"):
        lookup("good")
