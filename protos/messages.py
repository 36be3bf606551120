"""What server and device say to each other, as frozen dataclasses; units and meaning stand in `fedrho.proto`.

Enums carry the numbers of the wire. Nothing here knows bytes, sockets or time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

ID_BYTES = 16
"""Length of a run, session, request, device tag or ticket."""

CHUNK_BYTES = 512 * 1024
"""Size of a chunk of a download, and of an upload unless a plan says otherwise."""


class Encoding(Enum):
    """How an int32 grid vector is written: the number of the wire."""

    INT32_LE = 1
    INT16_LE = 2

    @property
    def dtype(self) -> str:
        return "<i4" if self is Encoding.INT32_LE else "<i2"

    @property
    def width(self) -> int:
        """Bytes a coordinate."""
        return int(np.dtype(self.dtype).itemsize)

    @staticmethod
    def for_grid(bits: int) -> Encoding:
        """The shortest encoding that holds every coordinate of a clipped vector."""
        return Encoding.INT16_LE if bits <= 14 else Encoding.INT32_LE


class LaterReason(Enum):
    NO_SEATS = 1
    RELEASING = 2
    FINISHED = 3
    OTHER_RUN = 4
    NOT_ALLOWED = 5
    TAG_MISSING = 6
    PAUSED = 7
    NOT_PROVED = 8


class Go(Enum):
    """The answer to a device that wants to upload."""

    GO = 1
    WAIT = 2
    NOT_NEEDED = 3
    ALREADY_COUNTED = 4


class Refusal(Enum):
    """Why an upload was not counted: answer, log field and metric label at once."""

    UNKNOWN_SESSION = 1
    NO_RESERVATION = 2
    TOO_LATE = 3
    WRONG_LENGTH = 4
    WRONG_CHECKSUM = 5
    NORM_TOO_LARGE = 6
    WRONG_FRAMING = 7
    ALREADY_OPEN = 8


class SessionStatus(Enum):
    __hash__ = object.__hash__  # every check-in counts by it; that of Enum runs Python

    ASSIGNED = 1
    RESERVED = 2
    COUNTED = 3
    REFUSED = 4
    EXPIRED = 5
    LOST = 6


class AbortReason(Enum):
    CONDITIONS = 1
    NOT_ALLOWED = 3
    SHUTDOWN = 4


@dataclass(frozen=True)
class LabelTerms:
    """How a device answers for its labels, once, and what it trains with then; an empty prior is uniform."""

    mechanism: str
    epsilon: float
    prior: tuple[float, ...] = ()
    correction: str = "forward"


@dataclass(frozen=True)
class PrivacyTerms:
    mechanism: str
    clip_norm: float
    noise_multiplier: float
    rho_budget: float
    max_participations: int
    min_separation: int
    min_period_seconds: float
    labels: LabelTerms | None = None


@dataclass(frozen=True)
class RetryWindow:
    min_seconds: float
    max_seconds: float


@dataclass(frozen=True)
class TaskSpec:
    """One task of a population, as devices decide upon it."""

    run: bytes
    task: str
    model: str
    size: int
    steps: int
    released: int
    terms: PrivacyTerms
    wants_device_tag: bool
    ended: bool
    began: float = 0.0


@dataclass(frozen=True)
class PopulationSpec:
    """What is signed: the same bytes for every device until the next epoch."""

    epoch: int
    server_time: float
    max_age_seconds: float
    rho_budget: float
    wants_proof: bool
    tasks: tuple[TaskSpec, ...]


@dataclass(frozen=True)
class PopulationRequest:
    etag: bytes = b""


@dataclass(frozen=True)
class PopulationAnswer:
    """A `PopulationSpec` as signed bytes; empty when the device holds the newest."""

    spec: bytes
    signature: bytes
    public_key: bytes
    retry: RetryWindow


@dataclass(frozen=True)
class Willing:
    run: bytes
    device_tag: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class DeviceProof:
    credential: bytes = field(repr=False)
    etag: bytes
    signature: bytes = field(repr=False)


@dataclass(frozen=True)
class CheckIn:
    request_id: bytes
    willing: tuple[Willing, ...]
    proof: DeviceProof | None = None


@dataclass(frozen=True)
class RoundPlan:
    run: bytes
    step: int
    attempt: int
    model: str
    checkpoint_sha256: bytes
    size: int
    clip_norm: float
    grid_bits: int
    encoding: Encoding
    epochs: int
    batch_size: int
    learning_rate: float
    chunk_bytes: int
    max_examples: int
    optimizer: str = "sgd"
    momentum: float = 0.0
    local_steps: int = 0
    labels: LabelTerms | None = None


@dataclass(frozen=True)
class Assignment:
    session: bytes = field(repr=False)
    plan: RoundPlan
    expires_seconds: float
    ticket: bytes = field(repr=False)
    upload_address: str = ""


@dataclass(frozen=True)
class TryLater:
    reason: LaterReason
    retry: RetryWindow


@dataclass(frozen=True)
class ArtifactRequest:
    sha256: bytes
    offset: int = 0


@dataclass(frozen=True)
class ArtifactChunk:
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class BeginUpload:
    session: bytes = field(repr=False)
    ticket: bytes = field(repr=False)


@dataclass(frozen=True)
class Reservation:
    """GO: reserved for `seconds`. WAIT: ask again after `seconds`."""

    answer: Go
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Upload:
    """A session's vector in grid units, int32, as it arrived: nothing about it has been checked."""

    session: bytes = field(repr=False)
    vector: NDArray[np.int32] = field(repr=False)


@dataclass(frozen=True)
class Receipt:
    status: SessionStatus
    refusal: Refusal | None = None


@dataclass(frozen=True)
class StatusRequest:
    session: bytes = field(repr=False)


@dataclass(frozen=True)
class StatusAnswer:
    status: SessionStatus


@dataclass(frozen=True)
class Abort:
    session: bytes = field(repr=False)
    reason: AbortReason
    ticket: bytes = field(repr=False)


@dataclass(frozen=True)
class Aborted:
    pass


@dataclass(frozen=True)
class UploadHeader:
    session: bytes = field(repr=False)
    total_bytes: int


@dataclass(frozen=True)
class UploadTrailer:
    crc32: int
