"""The population's signed spec, as one device reads it: verified, trusted, and asked for only as often as it has to be."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from fedrho.protos import codec, signing
from fedrho.protos.messages import PopulationAnswer, PopulationRequest, PopulationSpec, RetryWindow


class BadSpec(ValueError):
    """What the server sent is not a spec signed by its population's key, or is older than one that was seen before."""


@dataclass(frozen=True)
class Known:
    """A verified spec, the name of its bytes, who signed it, and when to look again.

    `strange` are the runs whose terms say something that this version of fedrho does not know.
    """

    spec: PopulationSpec
    etag: bytes
    public_key: bytes
    retry: RetryWindow
    asked_at: float
    strange: frozenset[bytes] = frozenset()


Ask = Callable[[PopulationRequest], Awaitable[PopulationAnswer]]
Trust = Callable[[bytes, int], None]
"""Given the key and the epoch of a verified spec; raises where the device knows another key, or a higher epoch."""


class SpecReader:
    """Keeps the newest spec. `now` is a clock in seconds that nobody turns back."""

    def __init__(self, ask: Ask, trust: Trust, now: Callable[[], float]) -> None:
        self._ask = ask
        self._trust = trust
        self._now = now
        self._known: Known | None = None

    async def read(self, fresh: bool = False) -> Known:
        """The spec that is held, while it is young enough and need not be `fresh`; raises BadSpec, and what `trust` raises."""
        known = self._known
        if known is None or fresh or self._now() - known.asked_at >= known.spec.max_age_seconds:
            self._known = known = await self._ask_again(known)
        return known

    async def _ask_again(self, known: Known | None) -> Known:
        try:
            answer = await self._ask(PopulationRequest(known.etag if known else b""))
        except codec.MalformedMessage as error:
            raise BadSpec(f"the server's answer is none: {error}") from error
        if known is not None and not answer.spec:
            return replace(known, retry=answer.retry, asked_at=self._now())
        try:
            signing.verify_spec(answer.public_key, answer.spec, answer.signature)
            spec = codec.decode(PopulationSpec, answer.spec)
        except (signing.SigningError, codec.MalformedMessage) as error:
            raise BadSpec(f"the server's population is not signed by its own key: {error}") from error
        if known is not None and answer.public_key == known.public_key and spec.epoch < known.spec.epoch:
            raise BadSpec(f"the server has gone back from epoch {known.spec.epoch} of its population to {spec.epoch}")
        self._trust(answer.public_key, spec.epoch)
        strange = codec.unknown_terms(answer.spec)
        return Known(spec, signing.etag(answer.spec), answer.public_key, answer.retry, self._now(), strange)
