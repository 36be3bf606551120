from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Encoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENCODING_UNSPECIFIED: _ClassVar[Encoding]
    INT32_LE: _ClassVar[Encoding]
    INT16_LE: _ClassVar[Encoding]

class Refusal(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REFUSAL_UNSPECIFIED: _ClassVar[Refusal]
    UNKNOWN_SESSION: _ClassVar[Refusal]
    NO_RESERVATION: _ClassVar[Refusal]
    TOO_LATE: _ClassVar[Refusal]
    WRONG_LENGTH: _ClassVar[Refusal]
    WRONG_CHECKSUM: _ClassVar[Refusal]
    NORM_TOO_LARGE: _ClassVar[Refusal]
    WRONG_FRAMING: _ClassVar[Refusal]
    ALREADY_OPEN: _ClassVar[Refusal]

class SessionStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SESSION_STATUS_UNSPECIFIED: _ClassVar[SessionStatus]
    ASSIGNED: _ClassVar[SessionStatus]
    RESERVED: _ClassVar[SessionStatus]
    COUNTED: _ClassVar[SessionStatus]
    REFUSED: _ClassVar[SessionStatus]
    EXPIRED: _ClassVar[SessionStatus]
    LOST: _ClassVar[SessionStatus]
ENCODING_UNSPECIFIED: Encoding
INT32_LE: Encoding
INT16_LE: Encoding
REFUSAL_UNSPECIFIED: Refusal
UNKNOWN_SESSION: Refusal
NO_RESERVATION: Refusal
TOO_LATE: Refusal
WRONG_LENGTH: Refusal
WRONG_CHECKSUM: Refusal
NORM_TOO_LARGE: Refusal
WRONG_FRAMING: Refusal
ALREADY_OPEN: Refusal
SESSION_STATUS_UNSPECIFIED: SessionStatus
ASSIGNED: SessionStatus
RESERVED: SessionStatus
COUNTED: SessionStatus
REFUSED: SessionStatus
EXPIRED: SessionStatus
LOST: SessionStatus

class GetPopulationRequest(_message.Message):
    __slots__ = ("etag",)
    ETAG_FIELD_NUMBER: _ClassVar[int]
    etag: bytes
    def __init__(self, etag: _Optional[bytes] = ...) -> None: ...

class GetPopulationResponse(_message.Message):
    __slots__ = ("spec", "signature", "public_key", "retry")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    spec: bytes
    signature: bytes
    public_key: bytes
    retry: RetryWindow
    def __init__(self, spec: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., public_key: _Optional[bytes] = ..., retry: _Optional[_Union[RetryWindow, _Mapping]] = ...) -> None: ...

class PopulationSpec(_message.Message):
    __slots__ = ("epoch", "server_time", "max_age_seconds", "rho_budget", "wants_proof", "tasks")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SERVER_TIME_FIELD_NUMBER: _ClassVar[int]
    MAX_AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RHO_BUDGET_FIELD_NUMBER: _ClassVar[int]
    WANTS_PROOF_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    server_time: float
    max_age_seconds: float
    rho_budget: float
    wants_proof: bool
    tasks: _containers.RepeatedCompositeFieldContainer[TaskSpec]
    def __init__(self, epoch: _Optional[int] = ..., server_time: _Optional[float] = ..., max_age_seconds: _Optional[float] = ..., rho_budget: _Optional[float] = ..., wants_proof: bool = ..., tasks: _Optional[_Iterable[_Union[TaskSpec, _Mapping]]] = ...) -> None: ...

class TaskSpec(_message.Message):
    __slots__ = ("run", "task", "model", "size", "steps", "released", "terms", "wants_device_tag", "ended", "began")
    RUN_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    WANTS_DEVICE_TAG_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    BEGAN_FIELD_NUMBER: _ClassVar[int]
    run: bytes
    task: str
    model: str
    size: int
    steps: int
    released: int
    terms: PrivacyTerms
    wants_device_tag: bool
    ended: bool
    began: float
    def __init__(self, run: _Optional[bytes] = ..., task: _Optional[str] = ..., model: _Optional[str] = ..., size: _Optional[int] = ..., steps: _Optional[int] = ..., released: _Optional[int] = ..., terms: _Optional[_Union[PrivacyTerms, _Mapping]] = ..., wants_device_tag: bool = ..., ended: bool = ..., began: _Optional[float] = ...) -> None: ...

class PrivacyTerms(_message.Message):
    __slots__ = ("mechanism", "clip_norm", "noise_multiplier", "rho_budget", "max_participations", "min_separation", "min_period_seconds", "labels")
    MECHANISM_FIELD_NUMBER: _ClassVar[int]
    CLIP_NORM_FIELD_NUMBER: _ClassVar[int]
    NOISE_MULTIPLIER_FIELD_NUMBER: _ClassVar[int]
    RHO_BUDGET_FIELD_NUMBER: _ClassVar[int]
    MAX_PARTICIPATIONS_FIELD_NUMBER: _ClassVar[int]
    MIN_SEPARATION_FIELD_NUMBER: _ClassVar[int]
    MIN_PERIOD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    mechanism: str
    clip_norm: float
    noise_multiplier: float
    rho_budget: float
    max_participations: int
    min_separation: int
    min_period_seconds: float
    labels: LabelTerms
    def __init__(self, mechanism: _Optional[str] = ..., clip_norm: _Optional[float] = ..., noise_multiplier: _Optional[float] = ..., rho_budget: _Optional[float] = ..., max_participations: _Optional[int] = ..., min_separation: _Optional[int] = ..., min_period_seconds: _Optional[float] = ..., labels: _Optional[_Union[LabelTerms, _Mapping]] = ...) -> None: ...

class LabelTerms(_message.Message):
    __slots__ = ("mechanism", "epsilon", "prior", "correction")
    MECHANISM_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    PRIOR_FIELD_NUMBER: _ClassVar[int]
    CORRECTION_FIELD_NUMBER: _ClassVar[int]
    mechanism: str
    epsilon: float
    prior: _containers.RepeatedScalarFieldContainer[float]
    correction: str
    def __init__(self, mechanism: _Optional[str] = ..., epsilon: _Optional[float] = ..., prior: _Optional[_Iterable[float]] = ..., correction: _Optional[str] = ...) -> None: ...

class CheckInRequest(_message.Message):
    __slots__ = ("request_id", "willing", "proof")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    WILLING_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    request_id: bytes
    willing: _containers.RepeatedCompositeFieldContainer[Willing]
    proof: DeviceProof
    def __init__(self, request_id: _Optional[bytes] = ..., willing: _Optional[_Iterable[_Union[Willing, _Mapping]]] = ..., proof: _Optional[_Union[DeviceProof, _Mapping]] = ...) -> None: ...

class Willing(_message.Message):
    __slots__ = ("run", "device_tag")
    RUN_FIELD_NUMBER: _ClassVar[int]
    DEVICE_TAG_FIELD_NUMBER: _ClassVar[int]
    run: bytes
    device_tag: bytes
    def __init__(self, run: _Optional[bytes] = ..., device_tag: _Optional[bytes] = ...) -> None: ...

class DeviceProof(_message.Message):
    __slots__ = ("credential", "etag", "signature")
    CREDENTIAL_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    credential: bytes
    etag: bytes
    signature: bytes
    def __init__(self, credential: _Optional[bytes] = ..., etag: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class CheckInResponse(_message.Message):
    __slots__ = ("assignment", "try_later")
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    TRY_LATER_FIELD_NUMBER: _ClassVar[int]
    assignment: Assignment
    try_later: TryLater
    def __init__(self, assignment: _Optional[_Union[Assignment, _Mapping]] = ..., try_later: _Optional[_Union[TryLater, _Mapping]] = ...) -> None: ...

class RetryWindow(_message.Message):
    __slots__ = ("min_seconds", "max_seconds")
    MIN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MAX_SECONDS_FIELD_NUMBER: _ClassVar[int]
    min_seconds: float
    max_seconds: float
    def __init__(self, min_seconds: _Optional[float] = ..., max_seconds: _Optional[float] = ...) -> None: ...

class Assignment(_message.Message):
    __slots__ = ("session", "plan", "expires_seconds", "ticket", "upload_address")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    plan: RoundPlan
    expires_seconds: float
    ticket: bytes
    upload_address: str
    def __init__(self, session: _Optional[bytes] = ..., plan: _Optional[_Union[RoundPlan, _Mapping]] = ..., expires_seconds: _Optional[float] = ..., ticket: _Optional[bytes] = ..., upload_address: _Optional[str] = ...) -> None: ...

class TryLater(_message.Message):
    __slots__ = ("reason", "retry")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REASON_UNSPECIFIED: _ClassVar[TryLater.Reason]
        NO_SEATS: _ClassVar[TryLater.Reason]
        RELEASING: _ClassVar[TryLater.Reason]
        FINISHED: _ClassVar[TryLater.Reason]
        OTHER_RUN: _ClassVar[TryLater.Reason]
        NOT_ALLOWED: _ClassVar[TryLater.Reason]
        TAG_MISSING: _ClassVar[TryLater.Reason]
        PAUSED: _ClassVar[TryLater.Reason]
        NOT_PROVED: _ClassVar[TryLater.Reason]
    REASON_UNSPECIFIED: TryLater.Reason
    NO_SEATS: TryLater.Reason
    RELEASING: TryLater.Reason
    FINISHED: TryLater.Reason
    OTHER_RUN: TryLater.Reason
    NOT_ALLOWED: TryLater.Reason
    TAG_MISSING: TryLater.Reason
    PAUSED: TryLater.Reason
    NOT_PROVED: TryLater.Reason
    REASON_FIELD_NUMBER: _ClassVar[int]
    RETRY_FIELD_NUMBER: _ClassVar[int]
    reason: TryLater.Reason
    retry: RetryWindow
    def __init__(self, reason: _Optional[_Union[TryLater.Reason, str]] = ..., retry: _Optional[_Union[RetryWindow, _Mapping]] = ...) -> None: ...

class RoundPlan(_message.Message):
    __slots__ = ("run", "step", "attempt", "model", "checkpoint_sha256", "size", "clip_norm", "grid_bits", "encoding", "epochs", "batch_size", "learning_rate", "chunk_bytes", "max_examples", "optimizer", "momentum", "local_steps", "labels")
    RUN_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    CLIP_NORM_FIELD_NUMBER: _ClassVar[int]
    GRID_BITS_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    MOMENTUM_FIELD_NUMBER: _ClassVar[int]
    LOCAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
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
    optimizer: str
    momentum: float
    local_steps: int
    labels: LabelTerms
    def __init__(self, run: _Optional[bytes] = ..., step: _Optional[int] = ..., attempt: _Optional[int] = ..., model: _Optional[str] = ..., checkpoint_sha256: _Optional[bytes] = ..., size: _Optional[int] = ..., clip_norm: _Optional[float] = ..., grid_bits: _Optional[int] = ..., encoding: _Optional[_Union[Encoding, str]] = ..., epochs: _Optional[int] = ..., batch_size: _Optional[int] = ..., learning_rate: _Optional[float] = ..., chunk_bytes: _Optional[int] = ..., max_examples: _Optional[int] = ..., optimizer: _Optional[str] = ..., momentum: _Optional[float] = ..., local_steps: _Optional[int] = ..., labels: _Optional[_Union[LabelTerms, _Mapping]] = ...) -> None: ...

class GetArtifactRequest(_message.Message):
    __slots__ = ("sha256", "offset")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    sha256: bytes
    offset: int
    def __init__(self, sha256: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class ArtifactChunk(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class BeginUploadRequest(_message.Message):
    __slots__ = ("session", "ticket")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    ticket: bytes
    def __init__(self, session: _Optional[bytes] = ..., ticket: _Optional[bytes] = ...) -> None: ...

class BeginUploadResponse(_message.Message):
    __slots__ = ("answer", "seconds")
    class Answer(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ANSWER_UNSPECIFIED: _ClassVar[BeginUploadResponse.Answer]
        GO: _ClassVar[BeginUploadResponse.Answer]
        WAIT: _ClassVar[BeginUploadResponse.Answer]
        NOT_NEEDED: _ClassVar[BeginUploadResponse.Answer]
        ALREADY_COUNTED: _ClassVar[BeginUploadResponse.Answer]
    ANSWER_UNSPECIFIED: BeginUploadResponse.Answer
    GO: BeginUploadResponse.Answer
    WAIT: BeginUploadResponse.Answer
    NOT_NEEDED: BeginUploadResponse.Answer
    ALREADY_COUNTED: BeginUploadResponse.Answer
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    answer: BeginUploadResponse.Answer
    seconds: float
    def __init__(self, answer: _Optional[_Union[BeginUploadResponse.Answer, str]] = ..., seconds: _Optional[float] = ...) -> None: ...

class UploadUpdateRequest(_message.Message):
    __slots__ = ("chunk", "header", "trailer")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    TRAILER_FIELD_NUMBER: _ClassVar[int]
    chunk: bytes
    header: UploadHeader
    trailer: UploadTrailer
    def __init__(self, chunk: _Optional[bytes] = ..., header: _Optional[_Union[UploadHeader, _Mapping]] = ..., trailer: _Optional[_Union[UploadTrailer, _Mapping]] = ...) -> None: ...

class UploadHeader(_message.Message):
    __slots__ = ("session", "total_bytes")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    total_bytes: int
    def __init__(self, session: _Optional[bytes] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class UploadTrailer(_message.Message):
    __slots__ = ("crc32",)
    CRC32_FIELD_NUMBER: _ClassVar[int]
    crc32: int
    def __init__(self, crc32: _Optional[int] = ...) -> None: ...

class UploadUpdateResponse(_message.Message):
    __slots__ = ("status", "refusal")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    status: SessionStatus
    refusal: Refusal
    def __init__(self, status: _Optional[_Union[SessionStatus, str]] = ..., refusal: _Optional[_Union[Refusal, str]] = ...) -> None: ...

class GetUploadStatusRequest(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    def __init__(self, session: _Optional[bytes] = ...) -> None: ...

class GetUploadStatusResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: SessionStatus
    def __init__(self, status: _Optional[_Union[SessionStatus, str]] = ...) -> None: ...

class AbortSessionRequest(_message.Message):
    __slots__ = ("session", "reason", "ticket")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REASON_UNSPECIFIED: _ClassVar[AbortSessionRequest.Reason]
        CONDITIONS: _ClassVar[AbortSessionRequest.Reason]
        NOT_ALLOWED: _ClassVar[AbortSessionRequest.Reason]
        SHUTDOWN: _ClassVar[AbortSessionRequest.Reason]
    REASON_UNSPECIFIED: AbortSessionRequest.Reason
    CONDITIONS: AbortSessionRequest.Reason
    NOT_ALLOWED: AbortSessionRequest.Reason
    SHUTDOWN: AbortSessionRequest.Reason
    SESSION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    reason: AbortSessionRequest.Reason
    ticket: bytes
    def __init__(self, session: _Optional[bytes] = ..., reason: _Optional[_Union[AbortSessionRequest.Reason, str]] = ..., ticket: _Optional[bytes] = ...) -> None: ...

class AbortSessionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
