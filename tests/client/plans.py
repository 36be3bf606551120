"""A plan and a task of a model, and nothing else about them."""

from __future__ import annotations

from fedrho.protos import messages as m

RUN = bytes(range(16))


def plan_of(model: str, size: int = 650) -> m.RoundPlan:
    return m.RoundPlan(RUN, 1, 1, model, bytes(32), size, 1.0, 20, m.Encoding.INT32_LE, 1, 16, 0.1, m.CHUNK_BYTES, 0)


def task_of(model: str, labels: m.LabelTerms | None, size: int = 650) -> m.TaskSpec:
    terms = m.PrivacyTerms("binary-tree", 1.0, 1.0, 1.0, 4, 1, 0.0, labels)
    return m.TaskSpec(RUN, "small", model, size, 10, 0, terms, False, False)
