"""Signatures, credentials and proofs: what their owner signed is accepted, and nothing else is."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrho.protos import signing
from fedrho.protos.signing import (
    BadCredential,
    BadKey,
    BadSignature,
    Fault,
    Purpose,
    SigningKey,
    check_proof,
    issue,
    prove,
    read_credential,
    verify_spec,
)

POPULATION, ISSUER, DEVICE, STRANGER = (SigningKey.generate() for _ in range(4))
SPEC = b"a serialized population spec"
ETAG, EARLIER, OTHER_ETAG = (hashlib.sha256(bytes([place])).digest() for place in range(3))
REQUEST, RUNS = bytes(range(16)), [bytes([7]) * 16, bytes([8]) * 16]
UNTIL = 2_000_000_000
SIGNATURE = POPULATION.sign_spec(SPEC)
CREDENTIAL = issue(ISSUER, DEVICE.public, UNTIL)
PROOF = prove(DEVICE, POPULATION.public, ETAG, REQUEST, RUNS)
GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493
WEAK = [(y | sign << 255).to_bytes(32, "little") for y in sorted(signing.WEAK_Y) for sign in (0, 1)]

anything = st.binary(max_size=200)
no_deadline = settings(deadline=None, max_examples=200)


def flipped(data: bytes) -> Iterator[bytes]:
    """`data` with each of its bits wrong in turn."""
    for place in range(8 * len(data)):
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        yield bytes(changed)


def verifies(spec: bytes = SPEC, signature: bytes = SIGNATURE, public: bytes = POPULATION.public) -> bool:
    try:
        verify_spec(public, spec, signature)
    except BadSignature:
        return False
    return True


def fault(credential: bytes, now: float = 0.0, issuer: bytes = ISSUER.public) -> Fault | None:
    try:
        assert read_credential(issuer, credential, now) == DEVICE.public
    except BadCredential as error:
        return error.reason
    return None


def proves(
    proof: bytes = PROOF,
    device: bytes = DEVICE.public,
    population: bytes = POPULATION.public,
    etags: tuple[bytes, ...] = (ETAG,),
    request: bytes = REQUEST,
    runs: tuple[bytes, ...] = tuple(RUNS),
) -> bool:
    try:
        check_proof(device, proof, population, etags, request, runs)
    except BadSignature:
        return False
    return True


def test_what_its_owner_signed_is_accepted() -> None:
    assert verifies()
    assert fault(CREDENTIAL) is None
    assert proves()


def test_any_wrong_bit_is_refused() -> None:
    assert not any(verifies(signature=wrong) for wrong in flipped(SIGNATURE))
    assert not any(verifies(spec=wrong) for wrong in flipped(SPEC))
    assert not any(verifies(public=wrong) for wrong in flipped(POPULATION.public))
    assert all(fault(wrong) in (Fault.FORGED, Fault.MALFORMED) for wrong in flipped(CREDENTIAL))
    assert not any(proves(wrong) for wrong in flipped(PROOF))
    assert not any(proves(device=wrong) for wrong in flipped(DEVICE.public))


def test_a_proof_is_for_one_check_in_alone() -> None:
    first, second = RUNS
    assert not proves(population=STRANGER.public)
    assert not proves(request=REQUEST[::-1])
    assert not proves(device=STRANGER.public)
    for runs in ((), (first,), (second, first), (first, second, second), (first + second,), (first[:8], first[8:] + second)):
        assert not proves(runs=runs)
    assert not proves(request=REQUEST + first, runs=(second,))


def test_a_proof_lasts_as_long_as_its_spec_is_recent() -> None:
    assert proves(etags=(OTHER_ETAG, ETAG))
    assert proves(etags=(ETAG, OTHER_ETAG))
    assert not proves(etags=(OTHER_ETAG, EARLIER))
    assert not proves(etags=())


def test_a_signature_for_one_purpose_serves_no_other() -> None:
    for purpose in Purpose:
        signature = POPULATION.sign(purpose, [SPEC])
        assert verifies(signature=signature) is (purpose is Purpose.SPEC)
    body = CREDENTIAL[: signing.BODY_BYTES]
    for purpose in Purpose:
        assert (fault(body + ISSUER.sign(purpose, [body])) is None) is (purpose is Purpose.CREDENTIAL)
    for purpose in Purpose:
        parts = [POPULATION.public, ETAG, REQUEST, *RUNS]
        assert proves(DEVICE.sign(purpose, parts)) is (purpose is Purpose.CHECK_IN)


def test_a_credential_is_of_its_issuer_alone() -> None:
    assert fault(issue(STRANGER, DEVICE.public, UNTIL)) is Fault.FORGED
    assert fault(CREDENTIAL, issuer=STRANGER.public) is Fault.FORGED


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (0.0, None),
        (UNTIL - 1, None),
        (UNTIL - 0.001, None),
        (UNTIL, Fault.EXPIRED),
        (UNTIL + 1, Fault.EXPIRED),
        (float("inf"), Fault.EXPIRED),
        (float("nan"), Fault.EXPIRED),
        (float("-inf"), None),
    ],
)
def test_a_credential_expires_to_the_second(now: float, expected: Fault | None) -> None:
    assert fault(CREDENTIAL, now) is expected


def test_a_credential_of_another_version_is_not_read_as_one_of_this() -> None:
    for version in (0, 2, 255):
        body = bytes([version]) + CREDENTIAL[1 : signing.BODY_BYTES]
        assert fault(body + ISSUER.sign(Purpose.CREDENTIAL, [body])) is Fault.MALFORMED


def test_a_forged_credential_is_not_called_expired() -> None:
    assert fault(issue(STRANGER, DEVICE.public, UNTIL), UNTIL + 1) is Fault.FORGED


@pytest.mark.parametrize("seconds", [-1, 2**64])
def test_an_impossible_expiry_is_refused(seconds: int) -> None:
    with pytest.raises(ValueError, match="whole seconds since 1970"):
        issue(ISSUER, DEVICE.public, seconds)
    assert fault(issue(ISSUER, DEVICE.public, 2**64 - 1), 1e15) is None


def test_truncated_and_padded_bytes_are_refused() -> None:
    for length in range(len(CREDENTIAL)):
        assert fault(CREDENTIAL[:length]) is Fault.MALFORMED
    for length in range(len(SIGNATURE)):
        assert not verifies(signature=SIGNATURE[:length])
        assert not proves(PROOF[:length])
    for length in range(len(POPULATION.public)):
        assert not verifies(public=POPULATION.public[:length])
    for extra in (b"\0", bytes(64), bytes(10_000_000)):
        assert fault(CREDENTIAL + extra) is Fault.MALFORMED
        assert not verifies(signature=SIGNATURE + extra)
        assert not verifies(spec=SPEC + extra)
        assert not verifies(public=POPULATION.public + extra)
        assert not proves(PROOF + extra)


@no_deadline
@given(public=anything, spec=anything, signature=anything)
def test_random_bytes_are_refused_without_any_other_error(public: bytes, spec: bytes, signature: bytes) -> None:
    assert not verifies(spec, signature, public)
    assert not verifies(SPEC, signature)
    assert fault(signature) in (Fault.MALFORMED, Fault.FORGED)
    assert fault(CREDENTIAL, issuer=public) is Fault.FORGED
    assert not proves(signature)
    assert not proves(device=public)


@no_deadline
@given(first=st.lists(anything, max_size=4), second=st.lists(anything, max_size=4))
def test_no_two_lists_of_parts_are_signed_alike(first: list[bytes], second: list[bytes]) -> None:
    same = DEVICE.sign(Purpose.CHECK_IN, first) == DEVICE.sign(Purpose.CHECK_IN, second)
    assert same is (first == second)  # Ed25519 is deterministic


@no_deadline
@given(data=anything, cut=st.integers(0, 200), again=st.integers(0, 200))
def test_moving_a_boundary_between_parts_changes_what_is_signed(data: bytes, cut: int, again: int) -> None:
    both = [DEVICE.sign(Purpose.CHECK_IN, [data[:place], data[place:]]) for place in (cut, again)]
    assert (both[0] == both[1]) is (min(cut, len(data)) == min(again, len(data)))


def test_a_signature_has_no_second_form() -> None:
    scalar = int.from_bytes(SIGNATURE[32:], "little")
    for multiple in range(1, 8):
        assert not verifies(signature=SIGNATURE[:32] + (scalar + multiple * GROUP_ORDER).to_bytes(32, "little"))


@pytest.mark.parametrize("public", WEAK, ids=bytes.hex)
def test_a_key_under_which_anybody_can_sign_is_refused(public: bytes) -> None:
    forged = signed_by_nobody(public)
    assert forged is not None  # the library by itself accepts it
    purpose, parts, signature = forged
    with pytest.raises(BadSignature):
        signing._verify(public, signature, purpose, parts)
    with pytest.raises(BadKey, match="no owner"):
        issue(ISSUER, public, UNTIL)


def signed_by_nobody(public: bytes) -> tuple[Purpose, list[bytes], bytes] | None:
    """A spec and a signature over it, made without any private key, that plain Ed25519 verification accepts."""
    key = Ed25519PublicKey.from_public_bytes(public)
    for number in range(2000):
        for commitment in WEAK:
            parts, signature = [number.to_bytes(2, "big")], commitment + bytes(32)
            if accepts(key, signature, signing._message(Purpose.SPEC, parts)):
                return Purpose.SPEC, parts, signature
    return None


def accepts(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message)
    except Exception:
        return False
    return True


def test_a_key_comes_back_from_its_pem() -> None:
    again = SigningKey.from_pem(DEVICE.to_pem())
    assert again.public == DEVICE.public
    assert proves(prove(again, POPULATION.public, ETAG, REQUEST, RUNS))


def other_pems() -> dict[str, bytes]:
    p256 = ec.generate_private_key(ec.SECP256R1())
    return {
        "empty": b"",
        "text": b"no key",
        "binary": bytes(range(256)),
        "truncated": DEVICE.to_pem()[:60],
        "another kind": p256.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        "public": DEVICE._private.public_key().public_bytes_raw(),
        "with a password": DEVICE._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")),
        "huge": b"-----BEGIN PRIVATE KEY-----\n" + b"A" * 1_000_000 + b"\n-----END PRIVATE KEY-----\n",
    }


@pytest.mark.parametrize("pem", other_pems().values(), ids=other_pems())
def test_what_is_no_key_is_refused(pem: bytes) -> None:
    with pytest.raises(BadKey, match="not an Ed25519 private key in PEM"):
        SigningKey.from_pem(pem)


def test_nothing_secret_is_shown() -> None:
    seed = DEVICE._private.private_bytes_raw()
    shown = [repr(DEVICE), str(DEVICE), f"{DEVICE}"]
    refusals: list[Callable[[], object]] = [
        lambda: verify_spec(STRANGER.public, SPEC, SIGNATURE),
        lambda: read_credential(STRANGER.public, CREDENTIAL, 0.0),
        lambda: check_proof(STRANGER.public, PROOF, POPULATION.public, [ETAG], REQUEST, RUNS),
        lambda: SigningKey.from_pem(DEVICE.to_pem()[:-30]),
    ]
    for refused in refusals:
        with pytest.raises(signing.SigningError) as caught:
            refused()
        shown.append(repr(caught.value) + str(caught.value))
    assert not any(DEVICE.to_pem().decode().splitlines()[1] in text for text in shown)
    for secret in (seed, CREDENTIAL, PROOF, SIGNATURE, SPEC):
        assert not any(secret.hex() in text or repr(secret)[2:-1] in text for text in shown)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on this machine")
def test_openssl_verifies_what_we_sign_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(POPULATION.to_pem())
    purpose = b"fedrho.v1 population spec"
    message = len(purpose).to_bytes(8, "big") + purpose + len(SPEC).to_bytes(8, "big") + SPEC
    (tmp_path / "signature").write_bytes(SIGNATURE)
    command = ["openssl", "pkeyutl", "-verify", "-rawin", "-inkey", "key.pem", "-sigfile", "signature", "-in", "message"]
    for written, expected in ((message, 0), (message + b"\0", 1), (SPEC, 1)):
        (tmp_path / "message").write_bytes(written)
        assert subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60).returncode == expected
    der = subprocess.run(
        ["openssl", "pkey", "-in", "key.pem", "-pubout", "-outform", "DER"],
        cwd=tmp_path,
        capture_output=True,
        check=True,
        timeout=60,
    ).stdout
    assert der[-32:] == POPULATION.public
