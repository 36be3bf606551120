"""What is made of a finished run: its table, its statement, its summary; from the rows and the claim alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fedrho.models.tokens import Tokens, Words
from fedrho.privacy.statement import PrivacyStatement
from fedrho.simulations import records
from fedrho.simulations.claim import ANSWERS_VOID, NO_GUARANTEE, NoGuarantee, SimulatedStatement
from fedrho.simulations.data.base import FederatedDataset
from fedrho.simulations.data.streams import Streams
from fedrho.simulations.data.vocabularies import is_private
from fedrho.simulations.records import MARK, Row
from fedrho.simulations.study import Study
from fedrho.simulations.sweep import WARNING


def assumptions(study: Study, statement: SimulatedStatement) -> list[str]:
    """Those of the claim, and what this study adds to them."""
    found = [*statement.broken, *statement.claim.assumptions]
    if study.file.chosen_from > 1:
        found.append(f"this is one of {study.file.chosen_from} studies of a sweep; {WARNING}")
    return found


def claim(study: Study, steps: int, statement: SimulatedStatement) -> dict[str, Any]:
    """The statement as JSON: what a deployed run could say stands under `if_deployed`, because the simulation protects nobody.

    Of a run without privacy that is null, and `guarantee` says why.
    """
    about = {
        "simulation": statement.simulation,
        "task": study.task.file.name,
        "algorithm": study.algorithm,
        "model": study.values()["task"]["model"],
        "step": steps,
        "steps": study.steps,
    }
    if isinstance(statement.claim, NoGuarantee):
        return {**about, "guarantee": NO_GUARANTEE, "if_deployed": None}
    return {**about, "if_deployed": _if_deployed(study, statement), **_label_claim(statement)}


def _if_deployed(study: Study, statement: SimulatedStatement) -> dict[str, Any]:
    said = statement.claim
    assert not isinstance(said, NoGuarantee)
    return {
        "unit": said.unit.value,
        "neighbours": said.neighbours.value,
        "rho": said.rho if isinstance(said, PrivacyStatement) else None,
        "rho_exact": said.exact if isinstance(said, PrivacyStatement) else None,
        "epsilon": statement.epsilon_if_deployed(study.delta),
        "delta": study.delta,
        "assumptions": assumptions(study, statement),
    }


def _label_claim(statement: SimulatedStatement) -> dict[str, Any]:
    """A statement of its own, never added to the other; nothing where a deployed run would claim nothing about labels."""
    labels = statement.labels
    return {} if labels is None else {"labels": {"simulation": ANSWERS_VOID, "if_deployed": dict(labels.to_json())}}


def claim_text(study: Study, statement: SimulatedStatement) -> str:
    """The same for people."""
    rows = [f"{name}: {text}" for name, text in statement.rows(study.delta)]
    assumed = [f"- {text}" for text in assumptions(study, statement)]
    under = ["", "It assumes that", "", *assumed] if assumed and study.delta is not None else []
    return "\n".join(["Privacy statement of a simulation", "", *rows, *under, *_labels_text(statement)]) + "\n"


def _labels_text(statement: SimulatedStatement) -> list[str]:
    if statement.labels is None:
        return []
    rows = [f"{name}: {text}" for name, text in statement.label_rows()]
    assumed = [f"- {text}" for text in statement.labels.assumptions]
    return ["", "About labels, and never added to the above", "", *rows, "", "It assumes that", "", *assumed]


def measured_on(row: Row, study: Study) -> str:
    return f"{row['held_out']['examples']} examples that no device holds, of data {study.data.name!r}"


def summary(study: Study, rows: Sequence[Row], said: Mapping[str, Any], vectorised: bool) -> dict[str, Any]:
    """How a study ended, without anything of this machine."""
    last = rows[-1]
    return {
        "name": study.file.name,
        "algorithm": study.algorithm,
        "model": said["model"],
        "data": study.data.name,
        "seed": study.seed,
        "vectorised": vectorised,
        "steps": last["step"],
        "virtual_seconds": last["virtual_seconds"],
        "accuracy": last["held_out"]["accuracy"],
        "loss": last["held_out"]["loss"],
        "measured_on": measured_on(last, study),
        "simulation": said["simulation"],
        **({"guarantee": said["guarantee"]} if "guarantee" in said else {}),
        "if_deployed": said["if_deployed"],
        **({"labels": said["labels"]} if "labels" in said else {}),
        MARK: last[MARK],
    }


def table(study: Study, rows: Sequence[Row]) -> bytes:
    """`metrics.parquet`."""
    about = {
        "study": study.file.name,
        "seed": str(study.seed),
        "delta": NO_GUARANTEE if study.delta is None else repr(study.delta),
        "held_out": measured_on(rows[-1], study),
        MARK: "columns of this mark hold what no real deployment could see",
    }
    return records.parquet(rows, about)


def tokens_of(dataset: FederatedDataset) -> Tokens | None:
    """What the ids of its examples are of, where they are of a text."""
    return dataset.tokens if isinstance(dataset, Streams) else None


def own_words(dataset: FederatedDataset) -> bytes | None:
    """`vocabulary.txt`, a word a line, the first with id 2: where the words were chosen for this study."""
    found = tokens_of(dataset)
    return "".join(f"{word}\n" for word in found.listed).encode() if isinstance(found, Words) and is_private(found) else None


def as_bytes(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, indent=2, allow_nan=False).encode() + b"\n"
