"""`fedrho keys` and TLS: what is encrypted, who is let in, and what a wrong set of certificates says."""

from __future__ import annotations

import asyncio
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from typer.testing import CliRunner

from fedrho import cli, keys
from fedrho.client.app import ServerUnreachable, read_population, run_devices
from fedrho.client.transport import ClientTls
from fedrho.console import BadInput
from fedrho.server.app import ServerTls
from fedrho.server.coordinator import Coordinator
from fedrho.server.service import OPTIONS, DeviceService
from tests.client.fleet import open_small_run, small_task
from tests.client.test_app import examples, unwatched

LOCAL = ["localhost", "127.0.0.1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys") / "set"
    keys.make_keys(folder, LOCAL, 30)
    return folder


@asynccontextmanager
async def serving(coordinator: Coordinator, tls: ServerTls) -> AsyncIterator[str]:
    server = grpc.aio.server(options=OPTIONS)
    port = server.add_secure_port("127.0.0.1:0", tls.credentials())
    service = DeviceService(coordinator, time.monotonic, lambda _: None)
    server.add_generic_rpc_handlers((service.handlers(),))
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
                await read_population(address, seconds, client)
            except ServerUnreachable:
                return False
            return True

    return asyncio.run(run())


def test_a_whole_run_goes_over_tls(made: Path, tmp_path: Path) -> None:
    coordinator = open_small_run(small_task(steps=1, goal=1), now=time.monotonic())

    async def run() -> None:
        async with serving(coordinator, keys.server_tls(made, require_device_certificate=True)) as address:
            await run_devices(address, examples(1), tmp_path, 10.0, unwatched, keys.client_tls(made))

    asyncio.run(run())
    assert coordinator.finished


def test_who_is_let_in(made: Path, tmp_path: Path) -> None:
    keys.make_keys(tmp_path / "other", LOCAL, 30)
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


def test_a_certificate_is_for_its_hosts_alone(tmp_path: Path) -> None:
    keys.make_keys(tmp_path, ["fl.example.org"], 30)
    assert not reads(keys.server_tls(tmp_path, require_device_certificate=False), keys.client_tls(tmp_path), 1.5)


def test_keys_are_private_and_certificates_say_what_they_are_for(made: Path) -> None:
    for name in ("ca", "server", "device"):
        assert stat.S_IMODE((made / f"{name}.key").stat().st_mode) == 0o600
    loaded = {name: x509.load_pem_x509_certificate((made / f"{name}.crt").read_bytes()) for name in ("ca", "server", "device")}
    for name, certificate in loaded.items():
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        assert constraints.ca == (name == "ca")
        certificate.verify_directly_issued_by(loaded["ca"])
        assert timedelta(days=29) < certificate.not_valid_after_utc - datetime.now(UTC) <= timedelta(days=30)
    names = loaded["server"].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]


def test_a_set_is_never_overwritten(made: Path) -> None:
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    with pytest.raises(BadInput, match=r"holds ca\.key already"):
        keys.make_keys(made, LOCAL, 30)
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before


@pytest.mark.parametrize("host", ["", " ", "two words", "ünïcode host"])
def test_what_is_no_host_is_refused(host: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--host"):
        keys.make_keys(tmp_path / "new", [host], 30)
    assert not (tmp_path / "new").exists()


def test_a_broken_set_is_refused_in_one_line(made: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        keys.server_tls(tmp_path, require_device_certificate=False)
    for name in ("server.crt", "server.key", "ca.crt"):
        (tmp_path / name).write_bytes((made / name).read_bytes())
    (tmp_path / "server.key").write_bytes((made / "device.key").read_bytes())
    with pytest.raises(BadInput, match=r"server\.key does not belong to server\.crt"):
        keys.server_tls(tmp_path, require_device_certificate=False)
    (tmp_path / "server.key").write_text("no key")
    with pytest.raises(BadInput, match="not a private key"):
        keys.server_tls(tmp_path, require_device_certificate=False)
    (tmp_path / "ca.crt").write_text("no certificate")
    with pytest.raises(BadInput, match="not a certificate"):
        keys.client_tls(tmp_path)


def test_a_set_that_has_expired_is_refused(tmp_path: Path) -> None:
    keys.make_keys(tmp_path, LOCAL, 0)
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


def test_the_command_makes_a_set(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.app, ["keys", str(tmp_path / "set"), "--host", "fl.example.org", "--host", "10.0.0.7"])
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "set").iterdir()} == {
        f"{name}.{kind}" for name in ("ca", "server", "device") for kind in ("crt", "key")
    }
