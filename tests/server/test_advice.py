"""What the dashboard says to an operator in trouble: the right thing for each, the worst first; where nothing is, nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedrho.dashboard_command import KeptRuns
from fedrho.privacy.statement import Neighbours, PrivacyStatement, Unit
from fedrho.privacy.zcdp import Rho
from fedrho.server.operations.dashboard import advice as module
from fedrho.server.operations.dashboard.advice import of_all, of_run
from fedrho.server.operations.dashboard.forecast import Latest, Pace, Prices, forecast
from fedrho.server.operations.dashboard.pages import Pages
from fedrho.server.operations.dashboard.past import Past
from fedrho.server.operations.dashboard.shown import coded
from fedrho.server.operations.dashboard.sources import Snapshot, Tallies
from fedrho.server.population import RunView
from fedrho.server.release import RunState
from tests.server.long_history import BEGAN, long_history
from tests.server.operating import small_task

NOW = BEGAN + 10_000.0
STATEMENT = PrivacyStatement(Unit.DEVICE, Neighbours.ZERO_OUT, Rho(0.5), ())
VIEW = RunView(
    b"r" * 16, "words", "dp-ftrl", "m", RunState.ACTIVE, 3, 9, 1, 100, 130, 0.4, 0.2, STATEMENT, 2.0, 1e-3, NOW - 60, NOW - 60
)
ANSWERED = Tallies({"ASSIGNED": 500, "NO_SEATS": 200}, {"COUNTED": 400, "TOO_LATE": 5}, {}, NOW - 10)
USUAL = Pace(50.0, 60.0, 70.0, 2)
PRICES = Prices(small_task(steps=9))


def said(view: RunView = VIEW, tallies: Tallies | None = ANSWERED, live: bool = True, problem: str = "") -> list[tuple[str, str]]:
    """Kind and text of each."""
    now = Snapshot(NOW, (view,), (), STATEMENT, 2.0, tallies)
    ahead = forecast(PRICES, Latest(view.step, view.committed_at), USUAL, NOW)
    found = [*of_all(now, live), *of_run(view, now, live, Past(problem=problem), ahead)]
    return [(one.kind, f"{one.what} {one.do}") for one in found]


def changed(**changes: Any) -> RunView:
    return replace(VIEW, **changes)


def test_a_run_that_goes_on_wants_nobody() -> None:
    assert said() == [("said", "It goes on, and there is nothing to do. ")]
    assert said(tallies=None) == said()


@pytest.mark.parametrize(
    ("view", "tallies", "live", "kind", "words"),
    [
        (changed(state=RunState.PAUSED), ANSWERED, True, "warn", "Paused: no device gets a seat. `fedrho resume words`"),
        (changed(state=RunState.CANCELLED), ANSWERED, True, "said", "Cancelled, for good"),
        (changed(state=RunState.FINISHED, step=9), ANSWERED, True, "said", "every step is released. `fedrho export`"),
        (VIEW, None, False, "said", "6 steps are to come. If a server runs, `fedrho status`"),
        (changed(drop_out=0.6), ANSWERED, True, "warn", "60 % of the seats bring no report. Devices fail after"),
        (changed(attempt=5), ANSWERED, True, "bad", "4 rounds at step 4 ran out"),
        (changed(committed_at=NOW - 600), ANSWERED, True, "warn", "latest release was 10 min ago; a step of late took 60 s"),
        (VIEW, replace(ANSWERED, moved_at=NOW - 7200), True, "bad", "Fewer than 5 devices have checked in for 2 h."),
        (VIEW, Tallies({"ASSIGNED": 0}, {}, {}, NOW - 7200), True, "bad", "since the server started, 2 h ago"),
        (
            VIEW,
            replace(ANSWERED, uploads={"COUNTED": 20, "TOO_LATE": 35}),
            True,
            "warn",
            "“too late” (20 or more). They come too late",
        ),
        (
            VIEW,
            replace(ANSWERED, uploads={"COUNTED": 5, "NORM_TOO_LARGE": 10}),
            True,
            "warn",
            "another client, a broken or a hostile",
        ),
        (VIEW, replace(ANSWERED, check_ins={"ASSIGNED": 10, "NOT_PROVED": 90}), True, "warn", "proved nothing. Their tokens"),
    ],
)
def test_what_is_the_matter_is_said_with_what_to_do(
    view: RunView, tallies: Tallies | None, live: bool, kind: str, words: str
) -> None:
    ((found, text),) = said(view, tallies, live)
    assert found == kind
    assert words in text


def test_the_worst_comes_first() -> None:
    quiet = replace(ANSWERED, moved_at=NOW - 7200, uploads={"COUNTED": 5, "TOO_LATE": 50})
    found = said(changed(drop_out=0.6, attempt=6, committed_at=NOW - 7200), quiet, problem="step 2: its link does not follow")
    assert [kind for kind, _ in found] == ["bad", "warn", "bad", "bad", "warn"], "what concerns all runs, then the run"
    assert "its link does not follow" in found[2][1]
    assert not any("latest release" in text for _, text in found), "which follows from the rest"


def test_a_paused_run_is_not_blamed_for_what_follows_from_it() -> None:
    quiet = replace(ANSWERED, moved_at=NOW - 7200)
    assert len(said(changed(state=RunState.PAUSED, attempt=6, committed_at=NOW - 7200), quiet)) == 1


def test_code_is_marked_and_nothing_else_is() -> None:
    assert coded("do `a <b>`, not <i>") == "do <code>a &lt;b&gt;</code>, not &lt;i&gt;"


def test_limits_are_those_of_the_alert_rules() -> None:
    path = Path(__file__).parents[2] / "deploy" / "prometheus" / "fedrho.rules.yml"
    rules = {rule["alert"]: rule["expr"] for rule in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"][0]["rules"]}
    assert f"> {module.HIGH_DROP_OUT:g}\n" in rules["FedrhoDropOutHigh"]
    assert rules["FedrhoRoundsAbandoned"].endswith(f"> {module.MANY_ATTEMPTS}")
    assert rules["FedrhoRefusalsRising"].strip().endswith(f"> {module.MANY_REFUSED:g}")
    assert rules["FedrhoNotProvedRising"].strip().endswith(f"> {module.MANY_NOT_PROVED:g}")


def test_it_stands_at_the_top_of_both_pages(tmp_path: Path) -> None:
    long_history(tmp_path, small_task("long", steps=40), 30)
    runs = KeptRuns(tmp_path)
    pages, now = Pages(runs, live=False), runs.look()
    for page in (pages.run(now, "long", "f"), pages.overview(now, "f")):
        place = page.index("10 steps are to come")
        assert place < page.index("rho spent")
        assert "<code>fedrho serve</code>" in page[place : place + 900]
