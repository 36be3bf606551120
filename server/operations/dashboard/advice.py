"""What wants an operator, in words: what is the matter, and what to do about it. The worst comes first.

It is told from what the pages show anyway, so it gives away nothing more; text between backticks is a command or a name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from fedrho.server.coarse import GROUP
from fedrho.server.operations.dashboard.forecast import Forecast
from fedrho.server.operations.dashboard.past import Past
from fedrho.server.operations.dashboard.shown import coarse, duration, words
from fedrho.server.operations.dashboard.sources import Snapshot, Tallies
from fedrho.server.population import RunView
from fedrho.server.release import RunState

QUIET_SECONDS: Final = 3600.0
"""Without a device, before that is worth a word."""
MANY_ATTEMPTS: Final = 3
HIGH_DROP_OUT: Final = 0.5
MANY_REFUSED: Final = 0.2
MANY_NOT_PROVED: Final = 0.1
"""As the alert rules in `deploy/prometheus` have them."""

TIMES: Final = ("TOO_LATE", "NO_RESERVATION", "UNKNOWN_SESSION")
"""Refusals of devices that were too slow."""


@dataclass(frozen=True)
class Advice:
    """`kind` is bad, warn, or said where nothing is wrong."""

    kind: str
    what: str
    do: str


def of_run(view: RunView, now: Snapshot, live: bool, past: Past | None = None, ahead: Forecast | None = None) -> list[Advice]:
    """About one run alone; `past` and `ahead` as far as they are known."""
    found = [*_of_history(past), *_of_state(view, live)]
    if goes_on(view, live):
        found += _of_round(view)
        if not found and not of_all(now, live):
            found = list(_of_time(view, ahead, now.at)) or [Advice("said", "It goes on, and there is nothing to do.", "")]
    return _sorted(found)


def of_all(now: Snapshot, live: bool) -> list[Advice]:
    """About the devices, which are those of all runs."""
    if now.tallies is None or not any(goes_on(view, live) for view in now.views):
        return []
    return _sorted([*_of_devices(now.tallies, now.at), *_of_answers(now.tallies)])


def goes_on(view: RunView, live: bool) -> bool:
    return live and view.state is RunState.ACTIVE


def _sorted(found: list[Advice]) -> list[Advice]:
    return sorted(found, key=lambda one: ("bad", "warn", "said").index(one.kind))


def _of_history(past: Past | None) -> Iterator[Advice]:
    if past is not None and past.problem:
        yield Advice(
            "bad",
            f"Do not trust this history: {past.problem}",
            "Stop the server and leave the store as it is. `fedrho account ledger STORE` says more, and a link that was kept "
            "elsewhere shows up to which step the history is the old one.",
        )


def _of_state(view: RunView, live: bool) -> Iterator[Advice]:
    if view.state is RunState.FINISHED:
        yield Advice("said", "Finished: every step is released.", "`fedrho export` writes the model with its statement.")
    if view.state is RunState.CANCELLED:
        yield Advice(
            "said",
            "Cancelled, for good. What was released stays released, and spent.",
            "`fedrho export` writes it. To begin again, give the task another name: it then adds a rho of its own.",
        )
    if view.state is RunState.PAUSED:
        yield Advice("warn", "Paused: no device gets a seat.", f"`fedrho resume {view.name}` goes on.")
    if view.state is RunState.ACTIVE and not live:
        yield Advice(
            "said",
            f"This page knows the store alone, and nothing of a server. {view.steps - view.step} steps are to come.",
            "If a server runs, `fedrho status` says where its own dashboard is. If none does, `fedrho serve` with the same task "
            "and store goes on; the last line of its log, or its exit code, says why it ended.",
        )


def _of_devices(tallies: Tallies, at: float) -> Iterator[Advice]:
    quiet = at - tallies.moved_at
    if quiet >= QUIET_SECONDS:
        never = not any(tallies.check_ins.values())
        when = f"since the server started, {duration(quiet)} ago" if never else f"for {duration(quiet)}"
        yield Advice(
            "bad",
            f"Fewer than {GROUP} devices have checked in {when}.",
            "Do devices reach the server? Try one by hand: `fedrho join` says what fails, be it address, firewall or "
            "certificates. A device that was told to come later comes when it was told to, and by night few may.",
        )


def _of_round(view: RunView) -> Iterator[Advice]:
    if view.attempt > MANY_ATTEMPTS:
        yield Advice(
            "bad",
            f"{view.attempt - 1} rounds at step {view.step + 1} ran out with too few reports. Each cost devices that had "
            "uploaded one of their participations.",
            f"If drop-out or refusals are high, begin there. Otherwise fewer than {view.goal} devices come in time: "
            f"`fedrho pause {view.name}` keeps their participations until there are more. Goal and deadline of a run are fixed; "
            "a task of another name may have a smaller goal, and adds a rho of its own.",
        )
    if view.drop_out > HIGH_DROP_OUT:
        yield Advice(
            "warn",
            f"{100 * view.drop_out:.0f} % of the seats bring no report.",
            "Devices fail after they were given a seat. Watch one: `fedrho join` in the foreground. It may be an old version, "
            "too little memory for the model, or training that takes longer than the deadline.",
        )


def _of_answers(tallies: Tallies) -> Iterator[Advice]:
    refused = {name: count for name, count in tallies.uploads.items() if name != "COUNTED" and count}
    if sum(refused.values()) > MANY_REFUSED * sum(tallies.uploads.values()):
        worst = max(refused, key=lambda name: refused[name])
        late = "They come too late: training takes too long for the deadline, or the link is slow."
        broken = "fedrho's own devices do not send such uploads: it is another client, a broken or a hostile one."
        yield Advice(
            "warn",
            f"Many uploads were refused since the server started, most as “{words(worst)}” ({coarse(refused[worst])}).",
            late if worst in TIMES else broken,
        )
    if tallies.check_ins.get("NOT_PROVED", 0) > MANY_NOT_PROVED * sum(tallies.check_ins.values()):
        yield Advice(
            "warn",
            "Many devices that checked in since the server started proved nothing.",
            "Their tokens have run out, or were made with another key set; or somebody tries.",
        )


def _of_time(view: RunView, ahead: Forecast | None, at: float) -> Iterator[Advice]:
    if ahead is not None and ahead.pace is not None and ahead.due_at is not None:
        yield Advice(
            "warn",
            f"The latest release was {duration(at - view.committed_at)} ago; a step of late took {duration(ahead.pace.median)}.",
            "Too few devices come, or too many are refused: the overview says what devices were answered.",
        )
