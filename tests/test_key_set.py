"""A set of keys on the disk: who may read what, who is let in where, and what a damaged, swapped or torn one says."""

from __future__ import annotations

import os
import shutil
import signal
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from typer.testing import CliRunner

from fedrho import cli, key_making, keys
from fedrho.client.transport import ClientTls
from fedrho.console import BadInput
from fedrho.key_making import make_keys
from fedrho.protos.signing import verify_spec
from fedrho.server.listen import ServerTls
from tests.test_keys import LOCAL, reads

AUTHORITIES = {"ca": ("server", "device"), "operator-ca": ("server", "operator"), "shard-ca": ("server", "shard")}
SERVERS = {"server/server": "ca", "server/operator-server": "operator-ca", "shard/shard": "shard-ca"}
CLIENTS = {"device/device": "ca", "operator/operator": "operator-ca", "server/coordinator": "shard-ca"}
SECRETS = {f"{name}.key" for name in (*SERVERS, *CLIENTS, "server/population", "offline/issuer")} | {
    f"offline/{name}.key" for name in AUTHORITIES
}
PUBLIC = (
    {f"{name}.crt" for name in (*SERVERS, *CLIENTS)}
    | {f"{holder}/{name}.crt" for name, holders in AUTHORITIES.items() for holder in holders}
    | {f"{holder}/population.pub" for holder in ("server", "device")}
    | {f"{holder}/issuer.pub" for holder in ("server", "offline")}
)
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on this machine")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys") / "set"
    make_keys(folder, ["fl.example.org", *LOCAL], 30, devices=2)
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copied"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def certificate(made: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((made / f"{name}.crt").read_bytes())


def test_a_set_is_complete_and_its_secrets_are_private(made: Path) -> None:
    tokens = {"devices/0000.token", "devices/0001.token"}
    assert set(files(made)) == SECRETS | PUBLIC | tokens
    for name in SECRETS | tokens:
        assert stat.S_IMODE((made / name).stat().st_mode) == 0o600
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o700 for path in (made, *made.iterdir()))


def test_every_file_is_explained(made: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "cli.md").read_text(encoding="utf-8")
    table = page.partition("<!-- keys-files -->")[2].partition("<!-- /keys-files -->")[0]
    for name in SECRETS | PUBLIC:
        assert f"{Path(name).stem}." in table
        assert f"{Path(name).stem}." in (keys.__doc__ or "")


def test_no_secret_is_written_twice_nor_into_a_public_file(made: Path) -> None:
    secrets = [data for name, data in files(made).items() if name in SECRETS]
    assert len(set(secrets)) == len(SECRETS)
    assert not any(b"PRIVATE" in data for name, data in files(made).items() if name in PUBLIC)


def test_certificates_come_from_their_authority_and_say_what_they_are_for(made: Path) -> None:
    authorities = {name: certificate(made, f"server/{name}") for name in AUTHORITIES}
    assert len({each.public_key().public_numbers() for each in authorities.values()}) == 3  # type: ignore[union-attr]
    for name, authority in (SERVERS | CLIENTS).items():
        leaf = certificate(made, name)
        leaf.verify_directly_issued_by(authorities[authority])
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH if name in SERVERS else ExtendedKeyUsageOID.CLIENT_AUTH]
        assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert timedelta(days=29) < leaf.not_valid_after_utc - datetime.now(UTC) <= timedelta(days=30)
    for name, holders in AUTHORITIES.items():
        assert len({(made / holder / f"{name}.crt").read_bytes() for holder in holders}) == 1


def hosts(made: Path, name: str) -> set[str]:
    names = certificate(made, name).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))}


def test_servers_are_named_as_they_are_reached(made: Path) -> None:
    assert hosts(made, "server/server") == {"fl.example.org", *LOCAL}
    assert hosts(made, "server/operator-server") == {"fl.example.org", *LOCAL, "::1"}
    assert hosts(made, "shard/shard") == {"fl.example.org", *LOCAL, "::1", keys.SHARD_NAME}


def shakes_hands(made: Path, server: str, client: str) -> bool:
    """Whether a TLS server with this pair and a client with that one, each with its own authority, accept each other."""
    roots = SERVERS | CLIENTS
    ends = []
    for name, purpose in ((server, ssl.Purpose.CLIENT_AUTH), (client, ssl.Purpose.SERVER_AUTH)):
        context = ssl.create_default_context(purpose, cafile=str(made / name.split("/")[0] / f"{roots[name]}.crt"))
        context.verify_mode, context.verify_flags = ssl.CERT_REQUIRED, context.verify_flags | ssl.VERIFY_X509_STRICT
        context.load_cert_chain(made / f"{name}.crt", made / f"{name}.key")
        ends.append(context)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    both = (
        ends[1].wrap_bio(to_client, to_server, server_hostname="localhost"),
        ends[0].wrap_bio(to_server, to_client, server_side=True),
    )
    done = set[ssl.SSLObject]()
    for _ in range(10):
        for end in both:
            try:
                end.do_handshake()
                done.add(end)
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError:
                return False
    return len(done) == 2


@pytest.mark.parametrize("server", SERVERS | CLIENTS)
@pytest.mark.parametrize("client", SERVERS | CLIENTS)
def test_each_port_lets_in_its_own_clients_alone(made: Path, server: str, client: str) -> None:
    right = server in SERVERS and client in CLIENTS and SERVERS[server] == CLIENTS[client]
    assert shakes_hands(made, server, client) is right


def test_the_same_holds_over_grpc(made: Path) -> None:
    assert reads(keys.operator_server_tls(made), keys.operator_client_tls(made))
    assert reads(keys.shard_tls(made), keys.coordinator_tls(made))
    shard = keys.shard_tls(made)
    for client in (keys.operator_client_tls(made), ClientTls(shard.root or b"", shard.certificate, shard.key)):
        assert not reads(shard, client, 1.5)


@needs_openssl
@pytest.mark.parametrize("name", SERVERS | CLIENTS)
def test_openssl_accepts_each_certificate_for_its_purpose_alone(made: Path, name: str) -> None:
    root = made / "server" / f"{(SERVERS | CLIENTS)[name]}.crt"
    for purpose, right in (("sslserver", name in SERVERS), ("sslclient", name in CLIENTS)):
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", str(root), str(made / f"{name}.crt")]
        assert (subprocess.run(command, capture_output=True, timeout=60).returncode == 0) is right


def test_the_population_key_that_devices_hold_verifies_what_the_server_signs(made: Path) -> None:
    key = keys.signing_key(made)
    for text in (
        made,
        made / "device",
        made / "server",
        made / "device/population.pub",
        key.public.hex(),
        key.public.hex().upper(),
    ):
        assert keys.population_key(str(text)) == key.public
    verify_spec(keys.population_key(str(made)), b"spec", key.sign_spec(b"spec"))
    assert keys.signing_key(made / "server").public == keys.signing_key(made / "server/population.key").public == key.public
    assert keys.has_signing_key(made)
    assert keys.has_signing_key(made / "server")
    assert not keys.has_signing_key(made / "device")
    assert (
        keys.issuer_key(str(made))
        == keys.issuer_key(str(made / "offline"))
        == keys.signing_key(made / "offline/issuer.key").public
    )
    assert keys.issuer_key(str(made)) != key.public


def test_a_set_is_never_overwritten(made: Path) -> None:
    before = files(made)
    with pytest.raises(BadInput, match="holds server already"):
        make_keys(made, LOCAL, 30)
    assert files(made) == before


def test_what_else_is_in_the_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    make_keys(tmp_path, LOCAL, 30)
    assert set(files(tmp_path)) == SECRETS | PUBLIC | {"notes.txt"}


def test_of_rivals_one_makes_the_set(tmp_path: Path) -> None:
    said = list[str]()

    def make() -> None:
        try:
            make_keys(tmp_path / "set", LOCAL, 30, devices=1)
            said.append("made")
        except BadInput as error:
            said.append(str(error))

    rivals = [threading.Thread(target=make) for _ in range(4)]
    for rival in rivals:
        rival.start()
    for rival in rivals:
        rival.join()
    assert said.count("made") == 1
    assert all("cannot be written" in line or "already" in line for line in said if line != "made")
    assert set(files(tmp_path / "set")) == SECRETS | PUBLIC | {"devices/0000.token"}
    assert keys.signing_key(tmp_path / "set").public == keys.population_key(str(tmp_path / "set"))


@pytest.mark.slow
def test_a_set_that_is_killed_while_it_is_made_is_no_set(tmp_path: Path) -> None:
    program = "import sys, pathlib, fedrho.key_making as made; made.make_keys(pathlib.Path(sys.argv[1]), [], 30, 10**6)"
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) as process:
        while not list(tmp_path.glob(".making-*/devices/0010.token")):
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    assert not key_making.holds_set(tmp_path)
    make_keys(tmp_path, LOCAL, 30)
    assert keys.client_tls(tmp_path).key is not None


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be written"):
        make_keys(tmp_path / "file" / "set", LOCAL, 30)
    with pytest.raises(OverflowError):
        make_keys(tmp_path / "set", LOCAL, 10**10)
    assert set(files(tmp_path)) == {"file"}


LOADERS: dict[str, Callable[[Path], object]] = {
    "server": lambda folder: keys.server_tls(folder, require_device_certificate=True),
    "device": keys.client_tls,
    "operator-server": keys.operator_server_tls,
    "operator": keys.operator_client_tls,
    "shard": keys.shard_tls,
    "coordinator": keys.coordinator_tls,
    "population.key": keys.signing_key,
    "population.pub": lambda folder: keys.population_key(str(folder)),
    "issuer.pub": lambda folder: keys.issuer_key(str(folder)),
    "token": lambda folder: keys.device_token(folder / "devices/0000.token"),
}
READS = {
    "server": ("server/server.crt", "server/server.key", "server/ca.crt"),
    "device": ("device/device.crt", "device/device.key", "device/ca.crt"),
    "operator-server": ("server/operator-server.crt", "server/operator-server.key", "server/operator-ca.crt"),
    "operator": ("operator/operator.crt", "operator/operator.key", "operator/operator-ca.crt"),
    "shard": ("shard/shard.crt", "shard/shard.key", "shard/shard-ca.crt"),
    "coordinator": ("server/coordinator.crt", "server/coordinator.key", "server/shard-ca.crt"),
    "population.key": ("server/population.key", "server/population.pub"),
    "population.pub": ("device/population.pub",),
    "issuer.pub": ("server/issuer.pub",),
    "token": ("devices/0000.token",),
}
EACH_FILE = [(loader, name) for loader, names in READS.items() for name in names]
DAMAGE = {
    "empty": b"",
    "text": b"no key, no certificate",
    "binary": bytes(range(256)) * 20,
    "huge": b"0" * 1_000_001,
    "a key of another kind": b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(("loader", "name"), EACH_FILE)
def test_a_damaged_file_is_refused_in_one_line_that_names_it(copied: Path, loader: str, name: str, damage: str) -> None:
    LOADERS[loader](copied)
    (copied / name).write_bytes(DAMAGE[damage])
    with pytest.raises(BadInput) as caught:
        LOADERS[loader](copied)
    assert Path(name).stem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("loader", "name"), EACH_FILE)
def test_a_truncated_file_is_refused(copied: Path, loader: str, name: str) -> None:
    whole = (copied / name).read_bytes()
    (copied / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match=Path(name).stem):
        LOADERS[loader](copied)


@pytest.mark.parametrize(("loader", "name"), [(each, name) for each, name in EACH_FILE if name != "server/population.pub"])
def test_a_missing_file_is_refused_unless_it_may_be_missing(copied: Path, loader: str, name: str) -> None:
    (copied / name).unlink()
    if name == "device/device.key":
        assert keys.client_tls(copied).certificate is None
        return
    with pytest.raises(BadInput, match=rf"{Path(name).name}: cannot be read \(No such file or directory\)"):
        LOADERS[loader](copied)


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o644, 0o666])
@pytest.mark.parametrize(("loader", "name"), [(each, name) for each, name in EACH_FILE if name.endswith((".key", ".token"))])
def test_a_secret_that_everybody_may_read_is_refused(copied: Path, loader: str, name: str, mode: int) -> None:
    (copied / name).chmod(mode)
    with pytest.raises(BadInput, match="open to everybody on this machine; `chmod o= "):
        LOADERS[loader](copied)
    for closed in (0o600, 0o400, 0o640):
        (copied / name).chmod(closed)
        LOADERS[loader](copied)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unreadable to root")
def test_a_secret_that_its_reader_may_not_read_is_refused(copied: Path) -> None:
    (copied / "server/server.key").chmod(0)
    with pytest.raises(BadInput, match="Permission denied"):
        keys.server_tls(copied, False)


@pytest.mark.parametrize(
    ("loader", "name", "other", "message"),
    [
        ("server", "server/server.key", "device/device.key", r"server\.key: does not belong to .*server\.crt"),
        ("shard", "shard/shard-ca.crt", "server/ca.crt", r"shard\.crt: not from the authority in .*shard-ca\.crt"),
        ("coordinator", "server/shard-ca.crt", "server/ca.crt", r"coordinator\.crt: not from the authority"),
        ("operator", "operator/operator-ca.crt", "server/shard-ca.crt", r"operator\.crt: not from the authority"),
        ("operator-server", "server/operator-ca.crt", "server/ca.crt", r"operator-server\.crt: not from the authority"),
        (
            "population.key",
            "server/population.key",
            "offline/issuer.key",
            r"population\.key: does not belong to .*population\.pub",
        ),
        ("population.key", "server/population.key", "server/server.key", "not an Ed25519 private key"),
        ("population.pub", "device/population.pub", "server/population.key", "a public key in 64 hex digits"),
        ("token", "devices/0000.token", "server/population.key", "not a device token"),
    ],
)
def test_swapped_files_are_refused(copied: Path, loader: str, name: str, other: str, message: str) -> None:
    shutil.copy2(copied / other, copied / name)
    with pytest.raises(BadInput, match=message):
        LOADERS[loader](copied)


@pytest.mark.parametrize("text", ["", "nowhere", "0" * 63, "0" * 65, "g" * 64, "x" * 5000, "a\0b", "\n", "٣" * 64])
def test_what_names_no_public_key_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="cannot be read"):
        keys.population_key(text)


def test_a_file_without_an_end_is_refused() -> None:
    with pytest.raises(BadInput, match=r"/dev/zero: larger than any key"):
        keys.population_key("/dev/zero")


def test_a_public_key_without_an_owner_is_refused() -> None:
    with pytest.raises(BadInput, match=r"the key given: .* anybody can sign"):
        keys.population_key("0" * 64)


def test_no_refusal_repeats_what_the_file_held(copied: Path) -> None:
    secret = keys.signing_key(copied).to_pem()
    (copied / "device/population.pub").write_bytes(secret)
    (copied / "devices/0000.token").write_bytes(secret)
    for loader in ("population.pub", "token"):
        with pytest.raises(BadInput) as caught:
            LOADERS[loader](copied)
        assert not any(line.decode() in str(caught.value) for line in secret.splitlines())


def test_nothing_secret_is_in_a_repr(made: Path) -> None:
    loaded = [load(made) for load in LOADERS.values()]
    shown = " ".join(map(repr, loaded))
    for key in (each.key for each in loaded if isinstance(each, ServerTls | ClientTls)):
        assert key is not None
        assert repr(key)[2:60] not in shown
    token = keys.device_token(made / "devices/0000.token")
    assert token.credential.hex() not in shown
    assert repr(token.credential) not in shown
    assert "PRIVATE" not in shown


def test_the_command_makes_a_set_and_adds_to_it(tmp_path: Path) -> None:
    def run(*options: str) -> str:
        done = CliRunner().invoke(cli.app, ["keys", str(tmp_path / "set"), *options])
        return done.output if done.exit_code == 0 else str(done.exception)

    assert "offline/ off every network" in run("--host", "fl.example.org", "--host", "10.0.0.7", "--devices", "1")
    assert hosts(tmp_path / "set", "server/server") == {"fl.example.org", "10.0.0.7"}
    before = files(tmp_path / "set")
    assert set(before) == SECRETS | PUBLIC | {"devices/0000.token"}
    assert "2 more tokens" in run("--devices", "2", "--days", "7")
    after = files(tmp_path / "set")
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"devices/0001.token", "devices/0002.token"}
    assert "stay as they are" in run("--devices", "2", "--host", "fl.example.org")
    assert "already" in run()
    assert files(tmp_path / "set") == after
