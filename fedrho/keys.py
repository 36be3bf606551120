"""A working set of certificates: one authority, a server under it, and a device for servers that ask devices for theirs.

FOLDER/ca.crt        the authority: give it to every device, it is not secret
FOLDER/ca.key        signs certificates; keep it away from the server, best off any network
FOLDER/server.crt    with server.key, what the server shows: valid for the host names it was made for
FOLDER/device.crt    with device.key, what a device shows to a server that requires it

Keys are P-256. A certificate is a file that anybody may read; a key is readable by its owner alone.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedrho.client.transport import ClientTls
from fedrho.console import BadInput
from fedrho.server.app import ServerTls

AUTHORITY, SERVER, DEVICE = "ca", "server", "device"
CLOCKS_DIFFER = timedelta(hours=1)


def make_keys(folder: Path, hosts: Sequence[str], days: int) -> None:
    """Writes a new set into `folder`; raises BadInput where there is one already, or a host cannot be named."""
    names = [_name_of(host) for host in hosts]
    there = [name for name in (AUTHORITY, SERVER, DEVICE) if (folder / f"{name}.key").exists()]
    if there:
        raise BadInput(f"{folder}: holds {there[0]}.key already; choose another folder, or remove the old set first")
    until = datetime.now(UTC) + timedelta(days=days)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        authority_key = ec.generate_private_key(ec.SECP256R1())
        authority = _certificate("fedrho authority", authority_key, None, authority_key, until, [])
        _write(folder, AUTHORITY, authority, authority_key)
        for name, usage, hosts_of in (
            (SERVER, ExtendedKeyUsageOID.SERVER_AUTH, names),
            (DEVICE, ExtendedKeyUsageOID.CLIENT_AUTH, []),
        ):
            key = ec.generate_private_key(ec.SECP256R1())
            _write(folder, name, _certificate(f"fedrho {name}", key, authority, authority_key, until, hosts_of, usage), key)
    except OSError as error:
        raise BadInput(f"{folder}: cannot be written ({error.strerror})") from error


def server_tls(folder: Path, require_device_certificate: bool) -> ServerTls:
    """What a server needs of the set; raises BadInput where it is missing or no longer valid."""
    certificate, key = _read_pair(folder, SERVER)
    return ServerTls(certificate, key, _read(folder / f"{AUTHORITY}.crt") if require_device_certificate else None)


def client_tls(folder: Path) -> ClientTls:
    """What a device needs: the authority, and its own certificate where the folder has one."""
    root = _read(folder / f"{AUTHORITY}.crt")
    _check_valid(folder / f"{AUTHORITY}.crt", root)
    if not (folder / f"{DEVICE}.key").exists():
        return ClientTls(root)
    return ClientTls(root, *_read_pair(folder, DEVICE))


def _certificate(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    signer: ec.EllipticCurvePrivateKey,
    until: datetime,
    names: Sequence[x509.GeneralName],
    usage: x509.ObjectIdentifier | None = None,
) -> x509.Certificate:
    """Signed by `signer`; an authority of its own where there is no issuer."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.subject if issuer else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - CLOCKS_DIFFER)
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=0 if issuer is None else None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if usage:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    return builder.sign(signer, hashes.SHA256())


def _name_of(host: str) -> x509.GeneralName:
    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    try:
        return x509.DNSName(host) if host.strip() == host and host and " " not in host else _refuse(host)
    except ValueError:
        return _refuse(host)


def _refuse(host: str) -> x509.GeneralName:
    raise BadInput(f"--host: {host!r} is no host name or address, for example fl.example.org or 10.0.0.7")


def _write(folder: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    """The key is never readable by others, not even for an instant."""
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    descriptor = os.open(folder / f"{name}.key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
    (folder / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _read_pair(folder: Path, name: str) -> tuple[bytes, bytes]:
    """Certificate and key; raises BadInput where they are not of each other."""
    certificate, key = _read(folder / f"{name}.crt"), _read(folder / f"{name}.key")
    parsed = _check_valid(folder / f"{name}.crt", certificate)
    try:
        loaded = serialization.load_pem_private_key(key, password=None)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{folder / f'{name}.key'}: not a private key without a password") from error
    if loaded.public_key() != parsed.public_key():
        raise BadInput(f"{folder}: {name}.key does not belong to {name}.crt")
    return certificate, key


def _check_valid(path: Path, data: bytes) -> x509.Certificate:
    try:
        certificate = x509.load_pem_x509_certificate(data)
    except ValueError as error:
        raise BadInput(f"{path}: not a certificate in PEM") from error
    now = datetime.now(UTC)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        when = f"{certificate.not_valid_before_utc:%Y-%m-%d} to {certificate.not_valid_after_utc:%Y-%m-%d}"
        raise BadInput(f"{path}: valid from {when}, not today; `fedrho keys` makes a new set")
    return certificate


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); `fedrho keys {path.parent}` makes a set") from error
