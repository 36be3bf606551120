"""One message of every kind, each field with a value of its own that is not its default."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from fedrho.protos import messages as m

RUN: Final = bytes(range(16))
SESSION: Final = bytes(range(16, 32))
REQUEST: Final = bytes(range(32, 48))
TAG: Final = bytes(range(48, 64))
SHA: Final = bytes(range(64, 96))
KEY: Final = bytes(range(96, 128))
SIGNATURE: Final = bytes(range(128, 192))
TICKET: Final = bytes(range(192, 208))

TERMS: Final = m.PrivacyTerms("binary-tree", 0.5, 1.25, 10.0, 3, 2, 86400.0)
LABELS: Final = m.LabelTerms("rr-with-prior", 2.0, (0.25, 0.75), "none")
RETRY: Final = m.RetryWindow(0.25, 600.0)
PLAN: Final = m.RoundPlan(
    run=RUN,
    step=7,
    attempt=2,
    model="m",
    checkpoint_sha256=SHA,
    size=650,
    clip_norm=0.5,
    grid_bits=20,
    encoding=m.Encoding.INT16_LE,
    epochs=1,
    batch_size=16,
    learning_rate=0.125,
    chunk_bytes=524288,
    max_examples=300,
    optimizer="rmsprop",
    momentum=0.75,
    local_steps=40,
)

TASK: Final = m.TaskSpec(RUN, "t", "m", 650, 30, 6, TERMS, True, True, 1.5e9)
OTHER: Final = replace(TASK, run=SESSION, task="u")
WILLING: Final = m.Willing(RUN, TAG)
PROOF: Final = m.DeviceProof(b"\x04\x05", SHA, SIGNATURE)
ASSIGNMENT: Final = m.Assignment(SESSION, PLAN, 20.0, TICKET, "a:1")

SAMPLES: Final[tuple[Any, ...]] = (
    m.PopulationRequest(SHA),
    m.PopulationAnswer(b"\x06\x07", SIGNATURE, KEY, RETRY),
    m.PopulationSpec(9, 1.75e9, 30.0, 12.5, True, (TASK, OTHER)),
    TASK,
    TERMS,
    LABELS,
    m.CheckIn(REQUEST, (WILLING, m.Willing(SESSION, KEY[:16])), PROOF),
    WILLING,
    PROOF,
    RETRY,
    PLAN,
    ASSIGNMENT,
    m.TryLater(m.LaterReason.NOT_ALLOWED, RETRY),
    m.ArtifactRequest(SHA, 1000),
    m.ArtifactChunk(b"\x01\x02\x03"),
    m.BeginUpload(SESSION, TICKET),
    m.Reservation(m.Go.WAIT, 1.5),
    m.UploadHeader(SESSION, 2600),
    m.UploadTrailer(0xCBF43926),
    m.Receipt(m.SessionStatus.REFUSED, m.Refusal.NORM_TOO_LARGE),
    m.StatusRequest(SESSION),
    m.StatusAnswer(m.SessionStatus.LOST),
    m.Abort(SESSION, m.AbortReason.SHUTDOWN, TICKET),
    m.Aborted(),
)
