from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RunState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RUN_STATE_UNSPECIFIED: _ClassVar[RunState]
    RUN_STATE_ACTIVE: _ClassVar[RunState]
    RUN_STATE_PAUSED: _ClassVar[RunState]
    RUN_STATE_CANCELLED: _ClassVar[RunState]
    RUN_STATE_FINISHED: _ClassVar[RunState]
RUN_STATE_UNSPECIFIED: RunState
RUN_STATE_ACTIVE: RunState
RUN_STATE_PAUSED: RunState
RUN_STATE_CANCELLED: RunState
RUN_STATE_FINISHED: RunState

class Statement(_message.Message):
    __slots__ = ("unit", "neighbours", "rho", "assumptions", "exact")
    UNIT_FIELD_NUMBER: _ClassVar[int]
    NEIGHBOURS_FIELD_NUMBER: _ClassVar[int]
    RHO_FIELD_NUMBER: _ClassVar[int]
    ASSUMPTIONS_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    unit: str
    neighbours: str
    rho: float
    assumptions: _containers.RepeatedScalarFieldContainer[str]
    exact: bool
    def __init__(self, unit: _Optional[str] = ..., neighbours: _Optional[str] = ..., rho: _Optional[float] = ..., assumptions: _Optional[_Iterable[str]] = ..., exact: bool = ...) -> None: ...

class LabelStatement(_message.Message):
    __slots__ = ("epsilon", "delta", "mechanisms", "assumptions")
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    MECHANISMS_FIELD_NUMBER: _ClassVar[int]
    ASSUMPTIONS_FIELD_NUMBER: _ClassVar[int]
    epsilon: float
    delta: float
    mechanisms: _containers.RepeatedScalarFieldContainer[str]
    assumptions: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, epsilon: _Optional[float] = ..., delta: _Optional[float] = ..., mechanisms: _Optional[_Iterable[str]] = ..., assumptions: _Optional[_Iterable[str]] = ...) -> None: ...

class Run(_message.Message):
    __slots__ = ("run", "name", "algorithm", "model", "state", "step", "steps", "attempt", "goal", "seats", "filled", "drop_out", "statement", "rho_budget", "delta", "opened_at", "committed_at", "labels")
    RUN_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ALGORITHM_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    GOAL_FIELD_NUMBER: _ClassVar[int]
    SEATS_FIELD_NUMBER: _ClassVar[int]
    FILLED_FIELD_NUMBER: _ClassVar[int]
    DROP_OUT_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    RHO_BUDGET_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    OPENED_AT_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_AT_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    run: bytes
    name: str
    algorithm: str
    model: str
    state: RunState
    step: int
    steps: int
    attempt: int
    goal: int
    seats: int
    filled: float
    drop_out: float
    statement: Statement
    rho_budget: float
    delta: float
    opened_at: float
    committed_at: float
    labels: LabelStatement
    def __init__(self, run: _Optional[bytes] = ..., name: _Optional[str] = ..., algorithm: _Optional[str] = ..., model: _Optional[str] = ..., state: _Optional[_Union[RunState, str]] = ..., step: _Optional[int] = ..., steps: _Optional[int] = ..., attempt: _Optional[int] = ..., goal: _Optional[int] = ..., seats: _Optional[int] = ..., filled: _Optional[float] = ..., drop_out: _Optional[float] = ..., statement: _Optional[_Union[Statement, _Mapping]] = ..., rho_budget: _Optional[float] = ..., delta: _Optional[float] = ..., opened_at: _Optional[float] = ..., committed_at: _Optional[float] = ..., labels: _Optional[_Union[LabelStatement, _Mapping]] = ...) -> None: ...

class ListRunsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListRunsResponse(_message.Message):
    __slots__ = ("runs", "combined")
    RUNS_FIELD_NUMBER: _ClassVar[int]
    COMBINED_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[Run]
    combined: Statement
    def __init__(self, runs: _Optional[_Iterable[_Union[Run, _Mapping]]] = ..., combined: _Optional[_Union[Statement, _Mapping]] = ...) -> None: ...

class WatchRunsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchRunsResponse(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: ListRunsResponse
    def __init__(self, runs: _Optional[_Union[ListRunsResponse, _Mapping]] = ...) -> None: ...

class PauseRunRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: bytes
    def __init__(self, run: _Optional[bytes] = ...) -> None: ...

class PauseRunResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResumeRunRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: bytes
    def __init__(self, run: _Optional[bytes] = ...) -> None: ...

class ResumeRunResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CancelRunRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: bytes
    def __init__(self, run: _Optional[bytes] = ...) -> None: ...

class CancelRunResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ExportModelRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: bytes
    def __init__(self, run: _Optional[bytes] = ...) -> None: ...

class ExportModelResponse(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: ExportHeader
    chunk: bytes
    def __init__(self, header: _Optional[_Union[ExportHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class ExportHeader(_message.Message):
    __slots__ = ("size", "sha256", "statement_json")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_JSON_FIELD_NUMBER: _ClassVar[int]
    size: int
    sha256: bytes
    statement_json: str
    def __init__(self, size: _Optional[int] = ..., sha256: _Optional[bytes] = ..., statement_json: _Optional[str] = ...) -> None: ...
