"""`fedrho data` in a process of its own: what is here, what is missing, and one line for whatever is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedrho.simulations.data.catalogue import names


def run(folder: Path, *arguments: str, **more: str) -> tuple[int, str, str]:
    environment = {**os.environ, "FEDRHO_DATA": str(folder), "COLUMNS": "160", "http_proxy": "", "no_proxy": "*", **more}
    command = [sys.executable, "-m", "fedrho", "data", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    return done.returncode, done.stdout, done.stderr


def test_all_data_sets_are_listed_with_their_licences(tmp_path: Path) -> None:
    code, out, err = run(tmp_path, "list", "--json")
    values = json.loads(out)
    assert (code, err, values["folder"]) == (0, "", str(tmp_path))
    assert [one["name"] for one in values["data_sets"]] == list(names())
    assert all(one["licence"] for one in values["data_sets"])
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_missing_are_told_with_checksum_and_address(tmp_path: Path) -> None:
    code, out, _ = run(tmp_path, "show", "fashion-mnist")
    assert code == 0
    for expected in ("MIT", "(to be fetched)", "3aede38d61863908", "https://raw.githubusercontent.com/", "shards_each"):
        assert expected in out


def test_an_unknown_data_set_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    code, out, err = run(tmp_path, "show", "mnits")
    assert (code, out) == (2, "")
    assert err.startswith("fedrho: unknown data set 'mnits'; known: digits, ")
    assert err.endswith("; did you mean 'mnist'?\n")
    assert err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("damaged", [False, True])
def test_fetching_without_a_network_or_over_a_damaged_file_is_one_line(damaged: bool, tmp_path: Path) -> None:
    """Mirror and proxy are this machine, where nobody listens: no name is looked up."""
    place = tmp_path / "text-en" / "tinyshakespeare.txt"
    if damaged:
        place.parent.mkdir()
        place.write_text("damaged")
    code, out, err = run(tmp_path, "fetch", "shakespeare", FEDRHO_MIRROR="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert (f"{place}: sha256 " if damaged else f"put the file at {place}") in err


@pytest.mark.slow
def test_what_a_data_set_holds_with_its_options_is_counted(tmp_path: Path) -> None:
    code, out, err = run(tmp_path, "show", "made-up", "--option", "devices=7", "--option", "examples=3", "--json")
    assert (code, err) == (0, "")
    counted = json.loads(out)["counted"]
    assert (counted["devices"], counted["examples"], counted["median"], counted["most"], counted["known"]) == (7, 21, 3, 3, None)
    assert "median 3, 90 % up to 3, most 3" in run(tmp_path, "show", "made-up", "--option", "examples=3")[1]
    for wrong, said in (("devices", "allowed: KEY=VALUE"), ("devices=none", "data.devices: 'none' is not allowed for made-up")):
        code, out, err = run(tmp_path, "show", "made-up", "--option", wrong)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert said in err


@pytest.mark.slow
def test_only_published_texts_have_their_words_listed(tmp_path: Path) -> None:
    code, out, err = run(tmp_path, "words", "folder")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "'folder' is no published text, and words of private text are not listed; known: shakespeare, caldracor" in err
