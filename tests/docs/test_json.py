"""Every field of every `--json` stands in docs/cli.md, and no other."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from fedrho import account, account_ledger, comparing, data, device, fleet, joining, models_command, operate, sweeping
from fedrho.demo import DemoResult
from fedrho.labels import answering, experiment, matrix, settings, train
from fedrho.labels import audit as labels_audit
from fedrho.labels.data import LabelData
from fedrho.labels.training import cells
from fedrho.privacy.auditing.audit import AuditReport
from fedrho.privacy.auditing.membership import membership_report
from fedrho.privacy.labels.audit import Finding, LabelAudit
from fedrho.privacy.zcdp import Rho
from fedrho.simulations import results
from fedrho.simulations.data.facts import Facts
from fedrho.study_running import Ended
from tests.docs.pages import PAGES, between, first_cells
from tests.docs.running import run
from tests.docs.test_options import COMMANDS, section_of

Fields = Callable[[], list[str]]
RUN: Final = ("--rounds", "4", "--max-participations", "1")


# -- from the source -----------------------------------------------------------------------------------------------------------


def dictionary_keys(value: ast.expr, names: Mapping[str, Any]) -> Iterator[str]:
    """Of a dictionary that is written out, of those that are merged into it, and of either side of a condition."""
    if isinstance(value, ast.BinOp):
        yield from dictionary_keys(value.left, names)
        yield from dictionary_keys(value.right, names)
    elif isinstance(value, ast.IfExp):
        yield from dictionary_keys(value.body, names)
        yield from dictionary_keys(value.orelse, names)
    elif isinstance(value, ast.Dict):
        for key, one in zip(value.keys, value.values, strict=True):
            if key is None:
                yield from dictionary_keys(one, names)
            else:
                assert isinstance(key, ast.Constant | ast.Name)
                yield str(key.value if isinstance(key, ast.Constant) else names[key.id])


def tree_of(function: Any) -> ast.AST:
    return ast.parse(inspect.cleandoc("\n" + inspect.getsource(function)))


def returned(function: Any) -> list[str]:
    """The keys of the dictionary that it returns, as written."""
    found = [node.value for node in ast.walk(tree_of(function)) if isinstance(node, ast.Return) and node.value is not None]
    (keys,) = filter(None, (list(dictionary_keys(value, function.__globals__)) for value in found))
    return keys


def printed(function: Any) -> list[str]:
    """The keys that it writes out where it prints JSON."""
    calls = [node for node in ast.walk(tree_of(function)) if isinstance(node, ast.Call)]
    (call,) = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "print_json"]
    return list(dictionary_keys(call.args[0], function.__globals__))


# -- from what is printed ------------------------------------------------------------------------------------------------------


def shown(*arguments: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(run([*arguments, "--json"]))
    return values


def audited() -> list[str]:
    return [*(field.name for field in dataclasses.fields(AuditReport)), "contradictions", "contradicts_claim", "findings"]


def membership() -> dict[str, Any]:
    scores = np.random.default_rng(0).normal(size=(20, 2))
    labels = np.zeros(20, dtype=np.int64)
    arrays = {f"{part}_{name}": value for part in ("train", "test") for name, value in (("logits", scores), ("labels", labels))}
    return membership_report(arrays, Rho(1.0)).as_json()


def calibrated() -> list[str]:
    keys = list(shown("account", "calibrate", "--rho", "1", *RUN))
    spent = returned(account._spend_json)
    assert keys[: len(spent)] == spent
    return keys[len(spent) :]


def trained() -> dict[str, Any]:
    """The results of a run whose every figure is there: classes are numbers, and accuracy is an estimate."""
    values = {
        "data": "ratings.npz",
        "classes": ["1", "2"],
        "values": [1.0, 2.0],
        "model": "digits-mlp",
        "labels_are_public": True,
        "training": {"steps": 1},
        "runs": [{"name": name, "epsilons": [1.0], "stages": [{}]} for name in ("one", "two")],
    }
    chosen = settings.made(values, "ratings.toml")
    figures = {"accuracy": 0.5, "rmse": 1.0, "accuracy_standard_error": 0.1, "statement": {"epsilon": 1.0}}
    for cell in cells(chosen):
        folder = Path("cells") / cell.name
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(figures), encoding="utf-8")
    features, labels = np.zeros((2, 1), np.float32), np.arange(2)
    return experiment.collected(chosen, LabelData("ratings.npz", features, labels, 2, features, labels), Path())


def predicted() -> list[str]:
    """Those of a text and those of features, in the order in which they are documented."""
    from fedrho.export import write_model
    from fedrho.models.flat import FlatModel
    from fedrho.models.zoo import lookup

    found = {}
    for model, given in {
        "characters-small-lstm": ("--text", "En un lugar"),
        "digits-mlp": ("--features", ",".join(["0"] * 64)),
    }.items():
        write_model(Path(f"{model}.npz"), FlatModel(lookup(model), seed=0), {"model": model})
        found[model] = list(shown("predict", f"{model}.npz", *given))
    text, features = found.values()
    (resized,) = [place for place, key in enumerate(features) if key not in text]
    assert [key for key in features if key in text] == [key for key in text if key not in ("continuation", "text")]
    last = text.index("text") + 1
    return [*text[:last], features[resized], *text[last:]]


FIELDS: Final[dict[str, Fields]] = {
    "demo": partial(returned, DemoResult.as_json),
    "status": partial(returned, operate.all_values),
    "status-run": partial(returned, operate.run_values),
    "status-claim": partial(returned, operate.statement_values),
    "fleet": partial(returned, fleet._fleet_json),
    "join": partial(returned, joining.joined_values),
    "models-list": partial(printed, models_command.list_all),
    "models": partial(returned, models_command.model_values),
    "models-show": partial(returned, models_command.shown_values),
    "models-weight": partial(returned, models_command.weight_values),
    "data-list": partial(printed, data.list_all),
    "data": partial(returned, data.entry_values),
    "data-file": partial(returned, data.file_values),
    "data-counted": lambda: [field.name for field in dataclasses.fields(Facts)],
    "device": partial(printed, device.ledger),
    "device-ledger": partial(returned, device.ledger_values),
    "device-population": partial(returned, device.population_values),
    "device-run": partial(returned, device.run_values),
    "device-incident": partial(returned, device.incident_values),
    "simulate-run": lambda: [*returned(results.summary), *returned(Ended.as_json)],
    "simulate-sweep": partial(printed, sweeping._tell),
    "simulate-compare": partial(printed, comparing.compare),
    "simulate-compare-study": partial(returned, comparing._row),
    "simulate-paths": lambda: list(shown("simulate", "paths", "--steps", "2", "--cohort", "1")),
    "labels-matrix": partial(returned, matrix.matrix_values),
    "labels-randomize": partial(returned, answering.summary_values),
    "labels-audit": partial(printed, labels_audit._say),
    "labels-audit-mechanism": partial(returned, LabelAudit.as_json),
    "labels-audit-finding": partial(returned, Finding.as_json),
    "labels-train": lambda: [*trained(), *returned(train._run)],
    "labels-train-run": lambda: list(trained()["runs"][0]),
    "account-spend": partial(returned, account._spend_json),
    "account-spend-sampled": partial(returned, account._sampled_json),
    "account-calibrate": calibrated,
    "account-compare-all": lambda: list(shown("account", "compare", *RUN)),
    "account-compare": partial(returned, account._losses),
    "account-convert": partial(returned, account._from_rho),
    "account-convert-epsilon": partial(returned, account._from_epsilon),
    "account-convert-rdp": partial(returned, account._from_rdp),
    "account-ledger": partial(returned, account_ledger._ledger_json),
    "account-ledger-run": partial(returned, account_ledger._run_json),
    "account-explain": lambda: list(shown("account", "explain", "--noise-multiplier", "4", *RUN)),
    "account-audit": audited,
    "account-membership": lambda: list(membership()),
    "account-membership-result": lambda: list(membership()["results"][0]),
    "predict": predicted,
}
"""By the mark around the table, without `-json`."""
SLOW: Final = ("predict", "simulate-paths")
"""Those that are asked of the program itself, and need TensorFlow or pictures."""
OTHERS: Final = {"data show": "data-counted", "data fetch": "fedrho data list", "serve": "(#fedrho-status)"}
"""Commands whose fields are documented with another command, and what their sections say."""


@pytest.mark.parametrize("mark", [pytest.param(mark, marks=(pytest.mark.slow,) if mark in SLOW else ()) for mark in FIELDS])
def test_the_fields_of_json_are_the_documented_ones(mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert first_cells(between("cli.md", f"{mark}-json")) == FIELDS[mark]()


def test_the_fields_of_the_demos_json_are_those_of_the_readme() -> None:
    assert first_cells(between("README.md", "demo-json")) == returned(DemoResult.as_json)


def test_every_table_of_fields_is_compared() -> None:
    assert set(re.findall(r"^<!-- ([a-z-]+)-json -->$", PAGES["cli.md"], re.MULTILINE)) == set(FIELDS)


def test_every_command_with_json_has_a_table_of_its_fields() -> None:
    with_json = [name for name in COMMANDS if any("--json" in parameter.opts for parameter in COMMANDS[name].params)]
    assert len(with_json) > 20
    for name in with_json:
        section = section_of(name, PAGES["cli.md"])
        assert OTHERS[name] in section if name in OTHERS else f"<!-- {name.replace(' ', '-')}" in section, name
