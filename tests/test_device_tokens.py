"""Device tokens on the disk: good for their device, their issuer and their days; added without touching anything else."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrho import keys
from fedrho.console import BadInput
from fedrho.key_making import add_devices, make_keys
from fedrho.protos.signing import SigningKey, check_proof, issue, parse_credential, prove, read_credential

DAY = 86400


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys") / "set"
    make_keys(folder, ["localhost"], 30, devices=3)
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copied"))


def tokens(folder: Path) -> list[Path]:
    return sorted((folder / "devices").iterdir())


def rewritten(path: Path, **changed: Any) -> Path:
    """The token with some of its fields changed."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    return path


def test_a_device_with_a_token_is_let_in_by_the_public_files_alone(made: Path) -> None:
    issuer, population = keys.issuer_key(str(made)), keys.population_key(str(made))
    devices = set()
    for path in tokens(made):
        token = keys.device_token(path)
        proof = prove(token.key, population, bytes(32), bytes(16), [bytes(16)])
        device = read_credential(issuer, token.credential, time.time())
        check_proof(device, proof, population, [bytes(32)], bytes(16), [bytes(16)])
        devices.add(device)
    assert len(devices) == 3


def test_tokens_last_as_many_days_as_were_asked_for(copied: Path) -> None:
    add_devices(copied, 1, 7)
    for path, days in zip(tokens(copied), (30, 30, 30, 7), strict=True):
        left = parse_credential(keys.device_token(path).credential).expires_at - time.time()
        assert days * DAY - 60 < left <= days * DAY


def test_adding_goes_on_after_the_last_number(copied: Path) -> None:
    (copied / "devices/0001.token").unlink()
    (copied / "devices/0999.token").write_text("")
    (copied / "devices/notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    add_devices(copied, 2, 30)
    assert [path.name for path in tokens(copied)] == [
        "0000.token",
        "0002.token",
        "0999.token",
        "1000.token",
        "1001.token",
        "notes.txt",
    ]
    assert {path: path.read_bytes() for path in before} == before


def test_rivals_add_all_their_tokens(copied: Path) -> None:
    rivals = [threading.Thread(target=add_devices, args=(copied, 20, 30)) for _ in range(4)]
    for rival in rivals:
        rival.start()
    for rival in rivals:
        rival.join()
    assert [path.name for path in tokens(copied)] == [f"{number:04d}.token" for number in range(83)]
    assert len({keys.device_token(path).key.public for path in tokens(copied)}) == 83


@pytest.mark.parametrize("lost", ["issuer.key", "."])
def test_without_the_issuers_key_nothing_is_added(copied: Path, lost: str) -> None:
    (shutil.rmtree if lost == "." else Path.unlink)(copied / "offline" / lost)
    before = tokens(copied)
    with pytest.raises(BadInput, match=r"offline/issuer\.key: cannot be read"):
        add_devices(copied, 1, 30)
    assert tokens(copied) == before


def test_an_issuer_whose_key_was_swapped_issues_nothing(copied: Path) -> None:
    shutil.copy2(copied / "server/population.key", copied / "offline/issuer.key")
    with pytest.raises(BadInput, match=r"issuer\.key: does not belong to .*issuer\.pub"):
        add_devices(copied, 1, 30)


def test_a_token_that_has_expired_is_refused(copied: Path) -> None:
    add_devices(copied, 1, 0)
    with pytest.raises(BadInput, match=r"0003\.token: has expired; ask whoever issued it"):
        keys.device_token(copied / "devices/0003.token")


def test_a_token_with_the_credential_of_another_device_is_refused(copied: Path) -> None:
    first, second, _ = tokens(copied)
    rewritten(first, credential=json.loads(second.read_text())["credential"])
    with pytest.raises(BadInput, match="its key is not the one that its credential is for"):
        keys.device_token(first)


def test_a_token_of_another_version_is_refused(copied: Path) -> None:
    with pytest.raises(BadInput, match="of another version of fedrho"):
        keys.device_token(rewritten(tokens(copied)[0], fedrho_token=2))


@pytest.mark.parametrize(
    "changed",
    [
        {"private_key": ""},
        {"private_key": None},
        {"private_key": 7},
        {"private_key": "\ud800"},
        {"credential": ""},
        {"credential": "zz"},
        {"credential": ["00"]},
        {"credential": "00" * 105},
        {"credential": "01" * 104},
    ],
)
def test_wrong_fields_are_refused(copied: Path, changed: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=r"0000\.token: not a device token"):
        keys.device_token(rewritten(tokens(copied)[0], **changed))


@pytest.mark.parametrize("text", ["[]", "null", "7", "{}", '"text"', "[" * 100_000, "NaN", "9" * 100_000])
def test_other_json_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "0000.token"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(BadInput, match="not a device token"):
        keys.device_token(path)


@settings(deadline=None, max_examples=60)
@given(data=st.binary(max_size=300))
def test_random_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random.token"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(BadInput, match="not a device token"):
        keys.device_token(path)


def test_a_forged_token_is_found_out_by_the_server(made: Path) -> None:
    forger, device = SigningKey.generate(), SigningKey.generate()
    forged = issue(forger, device.public, int(time.time()) + DAY)
    with pytest.raises(ValueError, match="the credential is forged"):
        read_credential(keys.issuer_key(str(made)), forged, time.time())
