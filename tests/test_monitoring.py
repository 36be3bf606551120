"""Dashboard and alert rules ask for what a server publishes, by expressions that Prometheus takes; and they can be told apart."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter as Tally
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from fedrho.server.operations import metrics
from fedrho.server.operations.metrics import Metrics
from fedrho.server.release import RunState

DEPLOY = Path(__file__).parents[1] / "deploy"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "fedrho.json").read_text(encoding="utf-8"))
RULES = yaml.safe_load((DEPLOY / "prometheus" / "fedrho.rules.yml").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
OF_TARGETS = {"job", "instance"}
"""Labels that Prometheus adds to what it scrapes."""
CLOSED = {
    "answer": set(metrics.ANSWERS),
    "outcome": set(metrics.OUTCOMES),
    "reason": {*metrics.REFUSALS.values(), metrics.UNKNOWN_METHOD},
    "state": {state.value for state in RunState},
}


def expressions() -> Iterator[tuple[str, str]]:
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for note in DASHBOARD["annotations"]["list"]:
        if "target" in note:
            yield note["name"], note["target"]["expr"]
    for rule in RULES["groups"][0]["rules"]:
        yield rule["alert"], rule["expr"]


def filled(expression: str) -> str:
    """As Grafana sends it."""
    text = re.sub(r"\$__(rate_)?interval", "1m", expression)
    return re.sub(r"\$(job|task|method)", ".*", text)


def published() -> dict[str, set[str]]:
    """The labels of every series, by its name."""
    found: dict[str, set[str]] = {"up": set(OF_TARGETS)}
    for one in Metrics().registry._collector_to_names:
        name, labels = one._name, {*one._labelnames, *OF_TARGETS}  # type: ignore[attr-defined]
        match one._type:  # type: ignore[attr-defined]
            case "counter":
                found[f"{name}_total"] = labels
            case "histogram":
                found |= {f"{name}_bucket": labels | {"le"}, f"{name}_count": labels, f"{name}_sum": labels}
            case _:
                found[name] = labels
    return found


def parts(expression: Any) -> list[Any]:
    found: list[Any] = []
    promql_parser.walk(expression, found.append)
    return found


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_every_expression_asks_for_what_a_server_publishes(where: str, expression: str) -> None:
    every = parts(promql_parser.parse(filled(expression)))
    selectors = [one for one in every if isinstance(one, promql_parser.VectorSelector)]
    assert selectors
    labels = set()
    for selector in selectors:
        assert selector.name in published(), selector.name
        labels |= published()[selector.name]
        for matcher in selector.matchers.matchers:
            assert matcher.name in published()[selector.name], (selector.name, matcher.name)
            for value in matcher.value.split("|") if matcher.name in CLOSED else ():
                assert value in CLOSED[matcher.name]
    for one in every:
        if isinstance(one, promql_parser.AggregateExpr) and one.modifier is not None:
            assert set(one.modifier.labels) <= labels, where


def test_every_metric_is_on_the_dashboard() -> None:
    asked = " ".join(target["expr"] for panel in PANELS for target in panel["targets"])
    names = {one._name for one in Metrics().registry._collector_to_names}  # type: ignore[attr-defined]
    assert {name for name in names if not re.search(rf"\b{name}(_total|_bucket)?\b", asked)} == set()


def test_names_are_as_prometheus_wants_them() -> None:
    """Base units in the name; `_total` for counters and for nothing else. promtool has more rules, below."""
    for name in published():
        assert re.fullmatch(r"up|fedrho_[a-z]+(_[a-z]+)*", name)
        assert not name.endswith(("_ms", "_milliseconds", "_percent", "_mb"))


def test_a_counter_is_there_before_anything_happened() -> None:
    registry = Metrics().registry
    for name, label in (("check_ins", "answer"), ("uploads", "outcome"), ("calls_refused", "reason")):
        assert all(registry.get_sample_value(f"fedrho_{name}_total", {label: value}) == 0 for value in CLOSED[label])


def test_the_dashboard_can_be_imported_as_it_is() -> None:
    variables = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
    assert (DASHBOARD["id"], DASHBOARD["schemaVersion"]) == (None, 39)
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    assert {"job", "task", "method"} <= variables.keys()
    used = set(re.findall(r"\$\{?(\w+)", json.dumps([DASHBOARD["panels"], DASHBOARD["annotations"], DASHBOARD["templating"]])))
    assert used - {"__rate_interval", "__interval", "__all"} == variables.keys()
    assert Tally(panel["id"] for panel in DASHBOARD["panels"]).most_common(1)[0][1] == 1
    for panel in PANELS:
        assert all((panel["description"], panel["title"]))
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        refs = [target["refId"] for target in panel["targets"]]
        assert len({*refs}) == len(refs)
        assert panel["type"] in ("heatmap", "state-timeline") or panel["fieldConfig"]["defaults"]["unit"]


def lost(ours: Any, theirs: Any, where: str = "") -> Iterator[str]:
    """What is not in `theirs`, or differs there; more may be, which are defaults."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in ours.items():
            yield from lost(value, theirs.get(key), f"{where}.{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for one, other in zip(ours, theirs, strict=True):
            yield from lost(one, other, where)
    elif ours != theirs:
        yield where


def test_grafanas_own_types_know_every_field_of_it() -> None:
    """But an annotation's query and title, which are the Prometheus plugin's."""
    register_default_plugins()
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(deepcopy(DASHBOARD))))
    plugin = {f".annotations.list.{name}" for name in ("target.expr", "target.refId", "titleFormat")}
    assert set(lost(DASHBOARD, read)) == plugin


def test_no_two_panels_lie_on_one_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells


OKABE_ITO = {"#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8C8C8C"}


def test_lines_that_have_names_differ_by_colour_and_dash() -> None:
    for panel in PANELS:
        looks = []
        for override in panel["fieldConfig"]["overrides"]:
            values = {one["id"]: one["value"] for one in override["properties"]}
            assert values["color"]["fixedColor"] in OKABE_ITO
            looks.append((values["color"]["fixedColor"], json.dumps(values["custom.lineStyle"])))
        assert len({*looks}) == len(looks), panel["title"]


PROMTOOL = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool comes with Prometheus")


@PROMTOOL
@pytest.mark.parametrize("what", [["test", "rules", "fedrho.rules.test.yml"], ["check", "config", "prometheus.yml"]])
def test_promtool_takes_the_rules_and_they_fire_when_they_should(what: list[str]) -> None:
    done = subprocess.run(["promtool", *what], cwd=DEPLOY / "prometheus", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@PROMTOOL
def test_promtool_finds_nothing_to_say_about_the_metrics() -> None:
    from prometheus_client import generate_latest

    text = generate_latest(Metrics().registry)
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
