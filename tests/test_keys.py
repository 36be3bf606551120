"""`fedrho keys` and TLS: what is encrypted, who is let in, and what a wrong set of certificates says."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedrho import cli, keys
from fedrho.client.app import Server, ServerUnreachable, read_population, run_devices
from fedrho.client.transport import ClientTls
from fedrho.console import BadInput
from fedrho.key_making import make_keys
from fedrho.server.guard import device_handlers
from fedrho.server.listen import ServerTls
from fedrho.server.ports import device_server
from fedrho.server.service import DeviceService
from fedrho.server.uploads import UploadService
from fedrho.serving import _joining
from tests.client.fleet import open_small_run, small_task
from tests.client.test_app import examples, unwatched
from tests.server.one_run import OneRun

LOCAL = ["localhost", "127.0.0.1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys") / "set"
    make_keys(folder, LOCAL, 30)
    return folder


@asynccontextmanager
async def serving(run: OneRun, tls: ServerTls) -> AsyncIterator[str]:
    server = device_server(60.0)
    port = server.add_secure_port("127.0.0.1:0", tls.credentials())
    service = DeviceService(run.population, time.monotonic, lambda _: None)
    server.add_generic_rpc_handlers((device_handlers(service.methods(), UploadService(run.shard, time.monotonic).methods()),))
    await server.start()
    rounds = asyncio.create_task(service.run_rounds(asyncio.Event()))
    try:
        yield f"127.0.0.1:{port}"
    finally:
        rounds.cancel()
        await asyncio.gather(rounds, return_exceptions=True)
        await server.stop(grace=None)


def reads(tls: ServerTls, client: ClientTls | None, seconds: float = 10.0) -> bool:
    """Whether a device with `client` gets an answer from a server with `tls`."""

    async def run() -> bool:
        async with serving(open_small_run(small_task(), now=time.monotonic()), tls) as address:
            try:
                await read_population(Server(address, client), seconds)
            except ServerUnreachable:
                return False
            return True

    return asyncio.run(run())


@pytest.mark.slow
def test_a_whole_run_goes_over_tls(made: Path, tmp_path: Path) -> None:
    served = open_small_run(small_task(steps=1, goal=1), now=time.monotonic())

    async def run() -> None:
        async with serving(served, keys.server_tls(made, require_device_certificate=True)) as address:
            here = Server(address, keys.client_tls(made))
            await run_devices(here, examples(1), {"digits-logistic"}, tmp_path, 10.0, unwatched)

    asyncio.run(run())
    assert served.finished


def test_who_is_let_in(made: Path, tmp_path: Path) -> None:
    make_keys(tmp_path / "other", LOCAL, 30)
    ours, others = keys.client_tls(made), keys.client_tls(tmp_path / "other")
    open_to_all, closed = (keys.server_tls(made, required) for required in (False, True))
    assert reads(open_to_all, ClientTls(ours.root))
    assert reads(closed, ours)
    for server, client in (
        (open_to_all, None),  # not encrypted
        (open_to_all, others),  # a server of a stranger's authority, as the device sees it
        (closed, ClientTls(ours.root)),  # a device without a certificate
        (closed, ClientTls(ours.root, others.certificate, others.key)),  # one of another authority
    ):
        assert not reads(server, client, 1.5)


def disbelieved(tls: ServerTls, client: ClientTls) -> str:
    """What a device says at once of a server that answers with such a certificate."""

    async def run() -> str:
        async with serving(open_small_run(small_task(), now=time.monotonic()), tls) as address:
            with pytest.raises(ServerUnreachable) as said:
                await read_population(Server(address, client), 60.0)
            return str(said.value)

    began = time.monotonic()
    why = asyncio.run(run())
    assert time.monotonic() - began < 30
    return why


def test_a_certificate_is_for_its_hosts_alone_and_the_device_says_so(tmp_path: Path) -> None:
    make_keys(tmp_path, ["fl.example.org"], 30)
    said = disbelieved(keys.server_tls(tmp_path, require_device_certificate=False), keys.client_tls(tmp_path))
    assert "is not believed: its certificate is not for this name" in said


def test_a_device_says_that_a_certificate_is_of_another_authority(made: Path, tmp_path: Path) -> None:
    make_keys(tmp_path, LOCAL, 30)
    said = disbelieved(keys.server_tls(made, require_device_certificate=False), keys.client_tls(tmp_path))
    assert "is not believed: its certificate is not of the authority in the folder of --tls" in said


def test_the_command_for_devices_has_a_name_of_the_certificate_and_what_is_to_be_shown(made: Path, tmp_path: Path) -> None:
    make_keys(tmp_path, ["fl.example.org"], 30)
    here, there = (keys.server_tls(folder, require_device_certificate=False) for folder in (made, tmp_path))
    assert _joining(None, None, False, "0.0.0.0:7070", "digits") == "fedrho join HOST:7070 --data digits"
    assert _joining(made, here, False, "127.0.0.1:7", "X") == f"fedrho join 127.0.0.1:7 --data X --tls {made / 'device'}"
    said = _joining(tmp_path / "server", there, True, "0.0.0.0:7", "X")
    assert said == f"fedrho join fl.example.org:7 --data X --tls {tmp_path / 'device'} --tokens TOKENS"


def flat(made: Path, folder: Path) -> Path:
    """The set as `fedrho keys` made it before there were holders."""
    folder.mkdir()
    for holder, names in (("server", ("ca.crt", "server.crt", "server.key")), ("device", ("device.crt", "device.key"))):
        for name in names:
            shutil.copy2(made / holder / name, folder / name)
    return folder


def test_whole_sets_parts_of_sets_and_old_flat_sets_are_read_alike(made: Path, tmp_path: Path) -> None:
    old = flat(made, tmp_path / "old")
    assert keys.client_tls(made) == keys.client_tls(made / "device") == keys.client_tls(old)
    assert keys.server_tls(made, True) == keys.server_tls(made / "server", True) == keys.server_tls(old, True)
    assert reads(keys.server_tls(old, True), keys.client_tls(old))


@pytest.mark.parametrize("host", ["", " ", "two words", "ünïcode host", "a\0b", "a\n", "x" * 1000])
def test_what_is_no_host_is_refused(host: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--host"):
        make_keys(tmp_path / "new", ["fl.example.org", host], 30)
    assert not (tmp_path / "new").exists()


def test_a_set_that_has_expired_is_refused(tmp_path: Path) -> None:
    make_keys(tmp_path, LOCAL, 0)
    for read in (lambda: keys.server_tls(tmp_path, False), lambda: keys.client_tls(tmp_path)):
        with pytest.raises(BadInput, match="not today"):
            read()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--require-device-certificate", "--require-device-certificate: needs --tls"),
        ("--tls nowhere", "cannot be read"),
        ("--tls nowhere --insecure", "--insecure: contradicts --tls"),
        ("--host 0.0.0.0", "add --tls FOLDER"),
    ],
)
def test_contradictions_are_refused_before_anything_is_written(options: str, message: str, tmp_path: Path) -> None:
    task = Path(__file__).parents[1] / "examples" / "digits.toml"
    done = CliRunner().invoke(cli.app, ["serve", str(task), "--store", str(tmp_path / "store"), *options.split()])
    assert message in str(done.exception)
    assert not (tmp_path / "store").exists()
