"""A working set of keys, one folder a holder: `fedrho keys` makes it, and here it is read.

FOLDER/device/      for every device
  ca.crt              whose certificates servers must show; public
  device.crt .key     one for all devices, for a server that requires one. Stolen: strangers may knock. Lost: a new set
  population.pub      what every population spec must be signed with, as 64 hex digits; public
FOLDER/server/      for the machine of the coordinator
  server.crt .key     what devices see. Stolen: whoever is also on the wire reads updates on their way. Lost: a new set
  ca.crt              whose device certificates are let in; public
  population.key .pub signs specs. Stolen: another server can give terms of its own. Lost: devices must be told a new key
  issuer.pub          whose tokens are good; public
  operator-server.crt .key  what operators see. Stolen: operators may be talking to a stranger. Lost: a new set
  operator-ca.crt     whose operators are let in; public
  coordinator.crt .key  what shards see. Stolen: whoever reaches a shard may read its sum before noise. Lost: a new set
  shard-ca.crt        whose shards are believed; public
FOLDER/shard/       for every shard
  shard.crt .key      what the coordinator sees. Stolen: a stranger may give it a false sum. Lost: a new set
  shard-ca.crt        whose coordinator is obeyed; public
FOLDER/operator/    for whoever runs the server
  operator.crt .key   what the operator port asks for. Stolen: a stranger may do what an operator may. Lost: a new set
  operator-ca.crt     whose servers are the operators' own; public
FOLDER/offline/     for nobody, on no network
  ca.key, operator-ca.key, shard-ca.key  sign certificates. Stolen: anybody is anybody. Lost: no further certificates
  issuer.key .pub     signs tokens. Stolen: one stranger is a thousand devices. Lost: no further tokens
FOLDER/devices/     NNNN.token, each for one device: its private key, and the issuer's credential for it
                      Stolen: a stranger passes for this device. Lost: a new token

A file with a private key is readable by its owner alone; one that everybody may read is refused. No file can be called back
before its last day. Sets of before, with ca, server and device flat in FOLDER, are still read.
"""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fedrho.certificates import Pair, check_issued, check_pair, check_valid
from fedrho.client.transport import ClientTls
from fedrho.console import BadInput
from fedrho.protos.signing import KEY_BYTES, BadCredential, BadKey, SigningKey, check_public, parse_credential
from fedrho.server.listen import ServerTls

DEVICE, SERVER, SHARD, OPERATOR, OFFLINE, TOKENS = "device", "server", "shard", "operator", "offline", "devices"
SHARD_NAME: Final = "shard.fedrho.internal"
"""What the certificate of every shard says beside its hosts, for a coordinator that reaches shards under changing names."""
TOKEN_VERSION: Final = 1
LARGEST_FILE: Final = 1_000_000


@dataclass(frozen=True)
class DeviceToken:
    """What one device proves itself with."""

    key: SigningKey
    credential: bytes = field(repr=False)


def server_tls(folder: Path, require_device_certificate: bool) -> ServerTls:
    """What a server needs of the set; raises BadInput where it is missing or no longer valid."""
    pair = _pair(folder, SERVER, "server")
    if not require_device_certificate:
        return ServerTls(pair.certificate, pair.key)
    return ServerTls(pair.certificate, pair.key, _root(folder, SERVER, "ca")[1])


def client_tls(folder: Path) -> ClientTls:
    """What a device needs: the authority, and its own certificate where the folder has one."""
    _, root = _root(folder, DEVICE, "ca")
    if not os.path.exists(_place(folder, DEVICE, "device.key")):
        return ClientTls(root)
    pair = _pair(folder, DEVICE, "device")
    return ClientTls(root, pair.certificate, pair.key)


def operator_server_tls(folder: Path) -> ServerTls:
    """For the operator port, which lets in nobody without a certificate of the operators' authority."""
    return _mutual_server(folder, SERVER, "operator-server", "operator-ca")


def operator_client_tls(folder: Path) -> ClientTls:
    return _mutual_client(folder, OPERATOR, "operator", "operator-ca")


def shard_tls(folder: Path) -> ServerTls:
    """For the port of a shard, which lets in nobody but the coordinator."""
    return _mutual_server(folder, SHARD, "shard", "shard-ca")


def coordinator_tls(folder: Path) -> ClientTls:
    """For the coordinator, which calls shards. They answer to the hosts of the set and to SHARD_NAME."""
    return _mutual_client(folder, SERVER, "coordinator", "shard-ca")


def signing_key(place: Path) -> SigningKey:
    """A private signing key: its file, or a folder with the one that signs population specs; raises BadInput."""
    path = _place(place, SERVER, "population.key") if os.path.isdir(place) else place
    pem = _read_secret(path)
    try:
        key = SigningKey.from_pem(pem)
    except BadKey as error:
        raise BadInput(f"{path}: {error}") from None
    public_at = path.with_suffix(".pub")
    if os.path.exists(public_at) and population_key(str(public_at)) != key.public:
        raise BadInput(f"{path}: does not belong to {public_at}")
    return key


def has_signing_key(folder: Path) -> bool:
    """Whether a set, the server's part of one, or a flat one has it."""
    return _place(folder, SERVER, "population.key").exists()


def population_key(text: str) -> bytes:
    """The public key of a population: 64 hex digits, a file with them, or a folder with that file; raises BadInput."""
    return _public_key(text, DEVICE, "population.pub")


def issuer_key(text: str) -> bytes:
    """The public key of whoever issues tokens: likewise."""
    return _public_key(text, SERVER, "issuer.pub")


def device_token(path: Path) -> DeviceToken:
    """Raises BadInput for what is no token, and for one that has expired."""
    data = _read_secret(path)
    try:
        written = json.loads(data)
        version, pem, credential = written["fedrho_token"], written["private_key"], written["credential"]
        token = DeviceToken(SigningKey.from_pem(pem.encode()), bytes.fromhex(credential))
        claimed = parse_credential(token.credential)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, BadKey, BadCredential):
        raise BadInput(f"{path}: not a device token; `fedrho keys FOLDER --devices 1` makes one") from None
    if version != TOKEN_VERSION:
        raise BadInput(f"{path}: a device token of another version of fedrho; ask for one of version {TOKEN_VERSION}")
    if claimed.device != token.key.public:
        raise BadInput(f"{path}: its key is not the one that its credential is for; use the token as it was made")
    if claimed.expires_at <= time.time():
        raise BadInput(f"{path}: has expired; ask whoever issued it for a new one")
    return token


def _mutual_server(folder: Path, holder: str, name: str, authority: str) -> ServerTls:
    pair, root = _mutual(folder, holder, name, authority)
    return ServerTls(pair.certificate, pair.key, root)


def _mutual_client(folder: Path, holder: str, name: str, authority: str) -> ClientTls:
    pair, root = _mutual(folder, holder, name, authority)
    return ClientTls(root, pair.certificate, pair.key)


def _mutual(folder: Path, holder: str, name: str, authority: str) -> tuple[Pair, bytes]:
    """Both ends have certificates of one authority, so a pair of another one is a mistake that can be told here."""
    pair, (root_at, root) = _pair(folder, holder, name), _root(folder, holder, authority)
    check_issued(str(_place(folder, holder, f"{name}.crt")), pair.certificate, str(root_at), root)
    return pair, root


def _root(folder: Path, holder: str, name: str) -> tuple[Path, bytes]:
    path = _place(folder, holder, f"{name}.crt")
    root = _read(path)
    check_valid(str(path), root)
    return path, root


def _pair(folder: Path, holder: str, name: str) -> Pair:
    certificate_at, key_at = (_place(folder, holder, f"{name}.{kind}") for kind in ("crt", "key"))
    pair = Pair(_read(certificate_at), _read_secret(key_at))
    check_pair(str(certificate_at), str(key_at), pair)
    return pair


def _public_key(text: str, holder: str, name: str) -> bytes:
    """Never repeats what it has read: it may be a private key, given by mistake."""
    digits, where = text, "the key given"
    if not re.fullmatch(f"[0-9a-fA-F]{{{2 * KEY_BYTES}}}", text):
        path = Path(text)
        path = _place(path, holder, name) if os.path.isdir(path) else path
        digits, where = _read(path).decode("ascii", "replace").strip(), str(path)
    try:
        return check_public(bytes.fromhex(digits))
    except BadKey as error:
        raise BadInput(f"{where}: {error}") from None
    except ValueError:
        raise BadInput(f"{where}: not a public key in {2 * KEY_BYTES} hex digits") from None


def _place(folder: Path, holder: str, name: str) -> Path:
    """Where it is: in the holder's part of a set, or in `folder` itself, which may be that part, or a flat set."""
    flat = folder / name
    return flat if os.path.exists(flat) or not os.path.isdir(folder / holder) else folder / holder / name


def _read_secret(path: Path) -> bytes:
    data = _read(path)
    if os.name == "posix" and path.stat().st_mode & 0o007:
        raise BadInput(
            f"{path}: open to everybody on this machine; `chmod o= {path}` first, and make a new one if anybody has read it"
        )
    return data


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no path"
        hint = "ask its owner" if isinstance(error, PermissionError) else "`fedrho keys FOLDER` makes a set"
        raise BadInput(f"{path}: cannot be read ({reason}); {hint}") from error
    if len(data) > LARGEST_FILE:
        raise BadInput(f"{path}: larger than any key; name the file that `fedrho keys` made")
    return data
