"""Engines by name, and what is said where one cannot be had."""

from __future__ import annotations

import sys

import pytest

from fedrho.simulations.engines import choose
from fedrho.simulations.engines.base import EngineError
from fedrho.simulations.engines.choose import NAMES, chosen, start_engine
from tests.simulations.engines.small import open_made, workload


@pytest.mark.parametrize(
    ("kind", "workers", "address", "said"),
    [
        ("threads", 0, "", "engine.kind: unknown engine 'threads'; allowed: auto, serial, processes, ray, tff"),
        ("processes", -1, "", "engine.workers: -1; allowed: 0, for as many as there are cores, or more"),
        ("serial", 2, "", "engine.workers: 2, but the engine 'serial' has one; allowed: 0 or 1"),
        ("processes", 2, "auto", "engine.address: only the engine 'ray' has one, not 'processes'"),
    ],
)
def test_settings_that_no_engine_takes_are_one_line(kind: str, workers: int, address: str, said: str) -> None:
    with pytest.raises(EngineError) as raised:
        start_engine(kind, workload(), workers, open_data=open_made, address=address)
    assert str(raised.value) == said


@pytest.mark.parametrize(
    ("kind", "package", "said"),
    [("ray", "ray", r"install fedrho\[ray\]$"), ("tff", "tensorflow_federated", r"install fedrho\[tff\] in an environment")],
)
def test_an_engine_whose_extra_is_missing_says_how_to_get_it(
    kind: str, package: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EngineError, match=said) as raised:
        start_engine(kind, workload(), open_data=open_made)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("cores", "workers", "kind"), [(1, 0, "serial"), (2, 0, "processes"), (1, 3, "processes"), (8, 1, "serial")]
)
def test_auto_takes_processes_where_there_is_more_than_one_core(
    cores: int, workers: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "available_cores", lambda: cores)
    assert chosen(workers) == kind
    assert kind in NAMES
