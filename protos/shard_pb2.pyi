from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HelloRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HelloResponse(_message.Message):
    __slots__ = ("incarnation", "address")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    incarnation: bytes
    address: str
    def __init__(self, incarnation: _Optional[bytes] = ..., address: _Optional[str] = ...) -> None: ...

class Attempt(_message.Message):
    __slots__ = ("run", "step", "attempt", "opened")
    RUN_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    run: bytes
    step: int
    attempt: int
    opened: bytes
    def __init__(self, run: _Optional[bytes] = ..., step: _Optional[int] = ..., attempt: _Optional[int] = ..., opened: _Optional[bytes] = ...) -> None: ...

class OpenRoundRequest(_message.Message):
    __slots__ = ("incarnation", "attempt", "key", "size", "clip_norm", "grid_bits", "quota", "lease_seconds", "wait_seconds")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    CLIP_NORM_FIELD_NUMBER: _ClassVar[int]
    GRID_BITS_FIELD_NUMBER: _ClassVar[int]
    QUOTA_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    incarnation: bytes
    attempt: Attempt
    key: bytes
    size: int
    clip_norm: float
    grid_bits: int
    quota: int
    lease_seconds: float
    wait_seconds: float
    def __init__(self, incarnation: _Optional[bytes] = ..., attempt: _Optional[_Union[Attempt, _Mapping]] = ..., key: _Optional[bytes] = ..., size: _Optional[int] = ..., clip_norm: _Optional[float] = ..., grid_bits: _Optional[int] = ..., quota: _Optional[int] = ..., lease_seconds: _Optional[float] = ..., wait_seconds: _Optional[float] = ...) -> None: ...

class OpenRoundResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GrantQuotaRequest(_message.Message):
    __slots__ = ("incarnation", "attempt", "quota")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    QUOTA_FIELD_NUMBER: _ClassVar[int]
    incarnation: bytes
    attempt: Attempt
    quota: int
    def __init__(self, incarnation: _Optional[bytes] = ..., attempt: _Optional[_Union[Attempt, _Mapping]] = ..., quota: _Optional[int] = ...) -> None: ...

class GrantQuotaResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetProgressRequest(_message.Message):
    __slots__ = ("incarnation", "attempt", "heard")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    HEARD_FIELD_NUMBER: _ClassVar[int]
    incarnation: bytes
    attempt: Attempt
    heard: int
    def __init__(self, incarnation: _Optional[bytes] = ..., attempt: _Optional[_Union[Attempt, _Mapping]] = ..., heard: _Optional[int] = ...) -> None: ...

class GetProgressResponse(_message.Message):
    __slots__ = ("sessions", "statuses")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    STATUSES_FIELD_NUMBER: _ClassVar[int]
    sessions: bytes
    statuses: bytes
    def __init__(self, sessions: _Optional[bytes] = ..., statuses: _Optional[bytes] = ...) -> None: ...

class SealRoundRequest(_message.Message):
    __slots__ = ("incarnation", "attempt")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    incarnation: bytes
    attempt: Attempt
    def __init__(self, incarnation: _Optional[bytes] = ..., attempt: _Optional[_Union[Attempt, _Mapping]] = ...) -> None: ...

class SealRoundPart(_message.Message):
    __slots__ = ("counted", "sum")
    COUNTED_FIELD_NUMBER: _ClassVar[int]
    SUM_FIELD_NUMBER: _ClassVar[int]
    counted: bytes
    sum: bytes
    def __init__(self, counted: _Optional[bytes] = ..., sum: _Optional[bytes] = ...) -> None: ...

class DropRoundRequest(_message.Message):
    __slots__ = ("incarnation", "attempt")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    incarnation: bytes
    attempt: Attempt
    def __init__(self, incarnation: _Optional[bytes] = ..., attempt: _Optional[_Union[Attempt, _Mapping]] = ...) -> None: ...

class DropRoundResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
