"""X.509 without files: authorities of our own, what they certify, and whether a certificate and a key can be used.

Keys are P-256. An authority signs leaves and no further authorities. A leaf is for servers or for clients, never for both.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedrho.console import BadInput

CLOCKS_DIFFER = timedelta(hours=1)
LONGEST_HOST = 253
FOR_SERVERS = ExtendedKeyUsageOID.SERVER_AUTH
FOR_CLIENTS = ExtendedKeyUsageOID.CLIENT_AUTH
NO_USAGE = dict.fromkeys(
    (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    ),
    False,
)
CERTIFIES = x509.KeyUsage(**NO_USAGE | {"key_cert_sign": True, "crl_sign": True})
SIGNS = x509.KeyUsage(**NO_USAGE | {"digital_signature": True})


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, in PEM."""

    certificate: bytes
    key: bytes = field(repr=False)


class Authority:
    """A certificate that certifies others until the day on which it ends itself."""

    def __init__(self, subject: str, until: datetime) -> None:
        self._key, self._until = ec.generate_private_key(ec.SECP256R1()), until
        self._name = _common_name(subject)
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        builder = self._builder(self._name, self._key).add_extension(constraints, critical=True)
        self._certificate = builder.add_extension(CERTIFIES, critical=True).sign(self._key, hashes.SHA256())

    def pair(self) -> Pair:
        return _in_pem(self._certificate, self._key)

    def certify(self, subject: str, usage: x509.ObjectIdentifier, names: Sequence[x509.GeneralName] = ()) -> Pair:
        """A new key, and a certificate for it."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            self._builder(_common_name(subject), key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(SIGNS, critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return _in_pem(builder.sign(self._key, hashes.SHA256()), key)

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.now(UTC) - CLOCKS_DIFFER)
            .not_valid_after(self._until)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )


def name_of(host: str) -> x509.GeneralName:
    """What a certificate says of a server that is reached by this name or address; raises BadInput."""
    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    with suppress(ValueError):
        if host and len(host) <= LONGEST_HOST and not any(letter.isspace() or not letter.isprintable() for letter in host):
            return x509.DNSName(host)
    raise BadInput(f"--host: {host[:80]!r} is no host name or address, for example fl.example.org or 10.0.0.7")


def check_valid(where: str, certificate: bytes) -> x509.Certificate:
    """The first certificate of a PEM file; raises BadInput where there is none, or today is not one of its days."""
    try:
        parsed = x509.load_pem_x509_certificate(certificate)
    except ValueError as error:
        raise BadInput(f"{where}: not a certificate in PEM") from error
    now = datetime.now(UTC)
    if not parsed.not_valid_before_utc <= now <= parsed.not_valid_after_utc:
        when = f"{parsed.not_valid_before_utc:%Y-%m-%d} to {parsed.not_valid_after_utc:%Y-%m-%d}"
        raise BadInput(f"{where}: valid from {when}, not today; `fedrho keys` makes a new set")
    return parsed


def hosts_of(certificate: bytes) -> list[str]:
    """The names that the first certificate of a PEM file is good for, in their order."""
    try:
        names = x509.load_pem_x509_certificate(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in names]


def check_pair(certificate_at: str, key_at: str, pair: Pair) -> None:
    """Raises BadInput where certificate and key are not of each other."""
    parsed = check_valid(certificate_at, pair.certificate)
    try:
        key = serialization.load_pem_private_key(pair.key, password=None)
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:
        raise BadInput(f"{key_at}: not a private key without a password") from error
    if key.public_key() != parsed.public_key():
        raise BadInput(f"{key_at}: does not belong to {certificate_at}")


def check_issued(certificate_at: str, certificate: bytes, root_at: str, root: bytes) -> None:
    """Raises BadInput unless the first certificate comes from one of the authorities, or from one of its own further ones."""
    leaf, *chain = x509.load_pem_x509_certificates(certificate)
    if not any(_issued(leaf, issuer) for issuer in (*x509.load_pem_x509_certificates(root), *chain)):
        raise BadInput(f"{certificate_at}: not from the authority in {root_at}")


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (TypeError, ValueError, InvalidSignature):
        return False
    return True


def _common_name(subject: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])


def _in_pem(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    return Pair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
