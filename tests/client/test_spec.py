"""The population's spec as a device reads it: verified before it is believed, and asked for only as often as it has to be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from fedrho.client.spec import BadSpec, Known, SpecReader
from fedrho.protos import codec, signing
from fedrho.protos.messages import PopulationAnswer, PopulationRequest, PopulationSpec, RetryWindow

SIGNER, OTHER = signing.SigningKey.generate(), signing.SigningKey.generate()
SPEC = PopulationSpec(7, 1000.0, 30.0, 1.0, False, ())
EARLY, LATE = RetryWindow(1.0, 2.0), RetryWindow(3.0, 4.0)


def signed(spec: PopulationSpec, key: signing.SigningKey = SIGNER) -> PopulationAnswer:
    data = codec.encode(spec)
    return PopulationAnswer(data, key.sign_spec(data), key.public, EARLY)


@dataclass
class Server:
    """Says what it is told to, like a server: nothing new to who holds the newest; and is a clock."""

    says: PopulationAnswer = field(default_factory=lambda: signed(SPEC))
    now: float = 0.0
    asked: list[bytes] = field(default_factory=list)
    trusted: list[tuple[bytes, int]] = field(default_factory=list)

    async def ask(self, request: PopulationRequest) -> PopulationAnswer:
        self.asked.append(request.etag)
        if request.etag and request.etag == signing.etag(self.says.spec):
            return replace(self.says, spec=b"", signature=b"", retry=LATE)
        return self.says

    def trust(self, key: bytes, epoch: int) -> None:
        self.trusted.append((key, epoch))

    def reader(self) -> SpecReader:
        return SpecReader(self.ask, self.trust, lambda: self.now)


def read(reader: SpecReader, fresh: bool = False) -> Known:
    return asyncio.run(reader.read(fresh))


def test_a_spec_is_verified_trusted_and_kept() -> None:
    server = Server()
    known = read(server.reader())
    assert (known.spec, known.public_key, known.retry) == (SPEC, SIGNER.public, EARLY)
    assert known.etag == signing.etag(server.says.spec)
    assert server.trusted == [(SIGNER.public, 7)]


BROKEN: dict[str, Callable[[PopulationAnswer], PopulationAnswer]] = {
    "one bit of the spec": lambda answer: replace(answer, spec=bytes([answer.spec[0] ^ 1]) + answer.spec[1:]),
    "more behind the spec": lambda answer: replace(answer, spec=answer.spec + b"\x00"),
    "one bit of the signature": lambda answer: replace(answer, signature=answer.signature[:-1] + b"\xff"),
    "no signature": lambda answer: replace(answer, signature=b""),
    "another's key": lambda answer: replace(answer, public_key=OTHER.public),
    "no key at all": lambda answer: replace(answer, public_key=bytes(32)),
    "nothing": lambda answer: replace(answer, spec=b"", signature=b""),
    "a signed nonsense": lambda answer: replace(answer, spec=b"\xff\xff", signature=SIGNER.sign_spec(b"\xff\xff")),
    "signed for something else": lambda answer: replace(answer, signature=SIGNER.sign(signing.Purpose.CHECK_IN, [answer.spec])),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_what_its_key_has_not_signed_as_a_spec_is_not_believed(broken: str) -> None:
    server = Server(BROKEN[broken](signed(SPEC)))
    with pytest.raises(BadSpec, match="not signed by its own key"):
        read(server.reader())
    assert server.trusted == []


@pytest.mark.parametrize(("passed", "asked"), [(0.0, 1), (29.9, 1), (30.0, 2)])
def test_a_spec_is_gone_by_for_as_long_as_it_says(passed: float, asked: int) -> None:
    server = Server()
    reader = server.reader()
    read(reader)
    server.now += passed
    read(reader)
    assert len(server.asked) == asked


def test_who_holds_the_newest_downloads_and_verifies_nothing_and_hears_the_new_window() -> None:
    server = Server()
    reader = server.reader()
    first = read(reader)
    server.now = 20.0
    again = read(reader, fresh=True)
    assert server.asked == [b"", first.etag]
    assert again == replace(first, retry=LATE, asked_at=20.0)
    assert len(server.trusted) == 1
    server.now = 49.9
    assert read(reader) is again


def test_the_newest_spec_takes_the_place_of_the_one_before() -> None:
    server = Server()
    reader = server.reader()
    read(reader)
    server.says = signed(replace(SPEC, epoch=8))
    assert read(reader).spec.epoch == 7
    assert read(reader, fresh=True).spec.epoch == 8
    assert [epoch for _, epoch in server.trusted] == [7, 8]


@pytest.mark.parametrize(("epoch", "believed"), [(6, False), (7, True), (8, True)])
def test_a_server_that_goes_back_is_not_believed_and_the_newest_spec_stays(epoch: int, believed: bool) -> None:
    server = Server()
    reader = server.reader()
    first = read(reader)
    server.says = signed(replace(SPEC, epoch=epoch, server_time=2000.0))
    if believed:
        assert read(reader, fresh=True).spec.epoch == epoch
        return
    with pytest.raises(BadSpec, match="gone back from epoch 7 of its population to 6"):
        read(reader, fresh=True)
    assert read(reader) is first


def test_what_the_device_does_not_trust_is_not_kept() -> None:
    server = Server()

    def trust(key: bytes, epoch: int) -> None:
        raise PermissionError("another key was here first")

    reader = SpecReader(server.ask, trust, lambda: 0.0)
    for _ in range(2):
        with pytest.raises(PermissionError):
            read(reader)
    assert server.asked == [b"", b""]


def test_a_server_that_does_not_answer_leaves_what_is_held() -> None:
    server = Server()
    reader = server.reader()
    first = read(reader)

    async def gone(request: PopulationRequest) -> PopulationAnswer:
        raise ConnectionError("nobody answers")

    reader._ask = gone
    with pytest.raises(ConnectionError):
        read(reader, fresh=True)
    assert read(reader) is first
