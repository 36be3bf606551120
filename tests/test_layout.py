"""The list in pyproject.toml, the folders and the links in fedrho/ tell the same story."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

TOP = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def setuptools() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))
    section: dict[str, Any] = project["tool"]["setuptools"]
    return section


def folders_with_files(top: Path) -> set[Path]:
    """`top` and the folders under it that a wheel must carry: packages, and folders of data."""
    found = {path.parent for path in top.rglob("*") if path.is_file()}
    return {folder for folder in found if not any(part.startswith((".", "__")) for part in folder.relative_to(top).parts)}


def test_every_folder_of_the_product_is_listed_and_nothing_else(setuptools: dict[str, Any]) -> None:
    tops: dict[str, str] = setuptools["package-dir"]
    folders = {
        ".".join((name, *folder.relative_to(TOP / top).parts))
        for name, top in tops.items()
        for folder in folders_with_files(TOP / top)
    }
    faces = {f"fedrho.{path.parent.name}" for path in (TOP / "fedrho").glob("*/__init__.py") if not path.parent.is_symlink()}
    assert sorted(setuptools["packages"]) == sorted({"fedrho", *faces, *folders})


def test_every_package_folder_has_an_init(setuptools: dict[str, Any]) -> None:
    folders = [TOP.joinpath(*name.split(".")) for name in setuptools["packages"]]
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_links_are_relative_and_match_the_map(setuptools: dict[str, Any]) -> None:
    links = {f"fedrho.{path.name}": str(path.readlink()) for path in (TOP / "fedrho").iterdir() if path.is_symlink()}
    assert links == {name: f"../{top}" for name, top in setuptools["package-dir"].items()}
