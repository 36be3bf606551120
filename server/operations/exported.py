"""The statement that travels with exported weights, as JSON."""

from __future__ import annotations

import json
from typing import Any

from fedrho.privacy.statement import PrivacyStatement
from fedrho.server.population import RunView


def statement_fields(view: RunView, step: int, statement: PrivacyStatement, weights_sha256: bytes, link: bytes) -> dict[str, Any]:
    """`labels` is a statement of its own, where there is one."""
    beside = {} if view.labels is None else {"labels": dict(view.labels.to_json())}
    return {
        "task": view.name,
        "algorithm": view.algorithm,
        "model": view.model,
        "run": view.run.hex(),
        "step": step,
        "steps": view.steps,
        "unit": statement.unit.value,
        "neighbours": statement.neighbours.value,
        "rho": statement.rho,
        "rho_exact": statement.exact,
        "epsilon": statement.epsilon(view.delta),
        "delta": view.delta,
        "assumptions": list(statement.assumptions),
        **beside,
        "weights_sha256": weights_sha256.hex(),
        "link": link.hex() or None,
    }


def statement_json(view: RunView, step: int, statement: PrivacyStatement, weights_sha256: bytes, link: bytes) -> str:
    return json.dumps(statement_fields(view, step, statement, weights_sha256, link), indent=2, allow_nan=False)
