"""The editors' archives become records: who speaks, and what, without stage directions and notes."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest

from fedrho.simulations.data import tei

HEAD = '<?xml version="1.0"?><TEI xmlns="http://www.tei-c.org/ns/1.0"><teiHeader>{}</teiHeader><text><body>{}</body></text></TEI>'
CC0 = "<licence><ab>CC0 1.0</ab></licence>"
PLAY = """
  <stage>Suenan instrumentos</stage>
  <sp who="#ingenio"><speaker>INGENIO</speaker><l n="5">¿Dónde, Pensamiento,
      vas?</l><stage>Vase.</stage><l part="I">Detente. <stage>(Aparte.)</stage> Espera</l></sp>
  <sp who="#uno #otro"><l>Los dos a la vez</l></sp>
  <sp who="#pensamiento"><lg><l>Si eres tan necio</l><l> </l></lg><p>en prosa</p></sp>
  <sp who="#nadie"><stage>Callado</stage></sp>
"""
SITTING = """
  <u ana="#chair"><seg>Se abre la sesión.</seg></u>
  <u who="#MaríaMontero" ana="#regular"><seg>Muy buenas tardes. <pb n="4"/> Me sumo.</seg><note>(Aplausos.)</note>
    <seg>Segundo <kinesic type="applause"><desc>Aplausos</desc></kinesic>párrafo.</seg></u>
"""


def archive(folder: Path, files: dict[str, str]) -> Path:
    path = folder / "archive.tar.gz"
    with tarfile.open(path, "w:gz") as members:
        for name, text in files.items():
            member = tarfile.TarInfo(f"top-103dca7/{name}")
            member.size = len(text.encode())
            members.addfile(member, io.BytesIO(text.encode()))
    return path


def records(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_plays_are_speeches_of_one_speaker_without_stage_directions(tmp_path: Path) -> None:
    files = {"tei/b.xml": HEAD.format(CC0, PLAY), "tei/a.xml": HEAD.format("<licence>other</licence>", PLAY), "README.md": "x"}
    tei.plays(archive(tmp_path, files), tmp_path / "out.gz")
    assert records(tmp_path / "out.gz") == [
        {"play": "b", "speaker": "ingenio", "text": "¿Dónde, Pensamiento, vas?\nDetente. Espera"},
        {"play": "b", "speaker": "pensamiento", "text": "Si eres tan necio\nen prosa"},
    ]


def test_sittings_are_speeches_of_known_speakers_of_half_a_year(tmp_path: Path) -> None:
    days = ("2022-01-25-CD220125", "2022-08-25-CD220825", "2021-01-25-CD210125")
    files = {f"ParlaMint-ES.TEI/2022/ParlaMint-ES_{day}.xml": HEAD.format("", SITTING) for day in days}
    tei.sittings(archive(tmp_path, files), tmp_path / "out.gz")
    assert records(tmp_path / "out.gz") == [
        {"date": "2022-01-25", "speaker": "MaríaMontero", "text": "Muy buenas tardes. Me sumo.\nSegundo párrafo."}
    ]


def test_the_same_archive_gives_the_same_bytes(tmp_path: Path) -> None:
    path = archive(tmp_path, {"tei/b.xml": HEAD.format(CC0, PLAY)})
    tei.plays(path, tmp_path / "one.gz")
    tei.plays(path, tmp_path / "two.gz")
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "two.gz").read_bytes()


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="not the archive"):
        tei.plays(tmp_path / "no", tmp_path / "out.gz")
    with pytest.raises(ValueError, match="not the archive"):
        tei.plays(archive(tmp_path, {"tei/b.xml": "<TEI"}), tmp_path / "out.gz")
