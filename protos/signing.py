"""Who says so: Ed25519 signatures over population specs, device credentials and check-ins.

    population key  signs  a spec          so that no server can give one device terms of its own
    issuer key      signs  a credential    version 1 | expires_at u64, seconds since 1970 | device's public key 32 | signature 64
    device key      signs  a check-in      population, ETag of its spec, request_id, runs: good here, now and once

What is signed names its purpose, and each part stands behind its length, so no signature can be read as one over something else.

    ValueError
    └── SigningError       never holds a byte of what was signed, nor of a key
        ├── BadKey         these bytes are no key
        ├── BadSignature   not from this key, or not over this
        └── BadCredential  with a `reason`

Knows bytes and keys, no files and no clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
CREDENTIAL_VERSION: Final = 1
BODY_BYTES: Final = 1 + 8 + KEY_BYTES
CREDENTIAL_BYTES: Final = BODY_BYTES + SIGNATURE_BYTES

_PRIME: Final = 2**255 - 19
_ORDER_8: Final = int.from_bytes(bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"), "little")
WEAK_Y: Final = {0, 1, _PRIME - 1, _PRIME, _PRIME + 1, _ORDER_8, _PRIME - _ORDER_8}
"""Of the points whose order divides 8: under such a key, which has no owner, signatures can be made for anything."""


class SigningError(ValueError):
    """A key, a signature or a credential that cannot be accepted."""


class BadKey(SigningError):
    """These bytes are no key, or one under which anybody can sign."""


class BadSignature(SigningError):
    """The signature is not from this key, or not over this."""


class Fault(Enum):
    """What is wrong with a credential: answer, log field and metric label at once."""

    MALFORMED = "malformed"
    FORGED = "forged"
    EXPIRED = "expired"


class BadCredential(SigningError):
    """A credential that says nothing about a device."""

    def __init__(self, reason: Fault) -> None:
        super().__init__(f"the credential is {reason.value}")
        self.reason = reason


class Purpose(Enum):
    """What a signature is for; part of everything that is signed."""

    SPEC = b"fedrho.v1 population spec"
    CREDENTIAL = b"fedrho.v1 device credential"
    CHECK_IN = b"fedrho.v1 check-in"


@dataclass(frozen=True)
class Credential:
    """What a credential says; only `read_credential` tells whether an issuer has said it."""

    device: bytes
    expires_at: int


class SigningKey:
    """A private key. It shows itself to `to_pem` alone; `public` is its 32 public bytes."""

    __slots__ = ("_private", "public")

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public: Final = private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> SigningKey:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, pem: bytes) -> SigningKey:
        """Raises BadKey for anything but an Ed25519 private key without a password."""
        try:
            private = load_pem_private_key(pem, password=None)
        except (TypeError, ValueError, UnsupportedAlgorithm):
            private = None
        if not isinstance(private, Ed25519PrivateKey):
            raise BadKey("not an Ed25519 private key in PEM, without a password")
        return cls(private)

    def to_pem(self) -> bytes:
        return self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def sign_spec(self, spec: bytes) -> bytes:
        return self.sign(Purpose.SPEC, [spec])

    def sign(self, purpose: Purpose, parts: Iterable[bytes]) -> bytes:
        return self._private.sign(_message(purpose, parts))

    def __repr__(self) -> str:
        return f"SigningKey(public={self.public.hex()})"


def etag(spec: bytes) -> bytes:
    """SHA-256 of a serialized spec: the name of this version of it."""
    return hashlib.sha256(spec).digest()


def check_public(public: bytes) -> bytes:
    """`public`; raises BadKey where it cannot be the public half of anyone's key."""
    if len(public) != KEY_BYTES:
        raise BadKey(f"a public key has {KEY_BYTES} bytes, not {len(public)}")
    if int.from_bytes(public, "little") % 2**255 in WEAK_Y:
        raise BadKey("this public key has no owner: anybody can sign under it")
    return public


def verify_spec(public: bytes, spec: bytes, signature: bytes) -> None:
    """Raises BadSignature unless the holder of `public` has signed exactly these bytes as a population spec."""
    _verify(public, signature, Purpose.SPEC, [spec])


def issue(issuer_key: SigningKey, device_public: bytes, expires_at: int) -> bytes:
    """A credential for the device with this key, good until `expires_at` seconds since 1970, that second not included."""
    if not 0 <= expires_at < 2**64:
        raise ValueError("expires_at is whole seconds since 1970, at least 0 and below 2**64")
    body = bytes([CREDENTIAL_VERSION]) + expires_at.to_bytes(8, "big") + check_public(device_public)
    return body + issuer_key.sign(Purpose.CREDENTIAL, [body])


def parse_credential(credential: bytes) -> Credential:
    """What it says, whoever has said it; raises BadCredential, always malformed."""
    if len(credential) != CREDENTIAL_BYTES or credential[0] != CREDENTIAL_VERSION:
        raise BadCredential(Fault.MALFORMED)
    return Credential(bytes(credential[9:BODY_BYTES]), int.from_bytes(credential[1:9], "big"))


def read_credential(issuer_public: bytes, credential: bytes, now: float) -> bytes:
    """The device's public key, as the issuer has certified it; raises BadCredential. `now` is in seconds since 1970."""
    claimed = parse_credential(credential)
    try:
        _verify(issuer_public, credential[BODY_BYTES:], Purpose.CREDENTIAL, [credential[:BODY_BYTES]])
    except BadSignature:
        raise BadCredential(Fault.FORGED) from None
    if not now < claimed.expires_at:
        raise BadCredential(Fault.EXPIRED)
    return claimed.device


def prove(device_key: SigningKey, population_public: bytes, etag: bytes, request_id: bytes, runs: Sequence[bytes]) -> bytes:
    """A signature for this one check-in, under the spec that `etag` names."""
    return device_key.sign(Purpose.CHECK_IN, [population_public, etag, request_id, *runs])


def check_proof(
    device_public: bytes,
    signature: bytes,
    population_public: bytes,
    etags: Iterable[bytes],
    request_id: bytes,
    runs: Sequence[bytes],
) -> None:
    """Raises BadSignature unless the device has signed this check-in, under one of `etags`; the likeliest first is fastest.

    *Guarantees*: the signature serves no other population, request_id, list of runs or spec, so it is worthless once its ETag is
    no longer accepted. *Assumes*: a repeated request_id has no second effect while its ETag is.
    """
    for accepted in etags:
        try:
            return _verify(device_public, signature, Purpose.CHECK_IN, [population_public, accepted, request_id, *runs])
        except BadSignature:
            continue
    raise BadSignature("the proof is not from this device, or not for this check-in under a recent spec")


def _verify(public: bytes, signature: bytes, purpose: Purpose, parts: Iterable[bytes]) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(check_public(public)).verify(signature, _message(purpose, parts))
    except (InvalidSignature, ValueError):
        raise BadSignature("the signature is not from this key, or not over this") from None


def _message(purpose: Purpose, parts: Iterable[bytes]) -> bytes:
    return b"".join(len(part).to_bytes(8, "big") + part for part in (purpose.value, *parts))
