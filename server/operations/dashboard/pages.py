"""What each page says, as HTML. Called on the dashboard's own thread, because histories are read and charts drawn here."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from fedrho.privacy.claims import in_words
from fedrho.privacy.statement import PrivacyStatement, round_up
from fedrho.server.chain import Entry
from fedrho.server.operations.dashboard import forecast as forecasts
from fedrho.server.operations.dashboard.advice import Advice, of_all, of_run
from fedrho.server.operations.dashboard.forecast import Forecast, Latest, Prices, thinned
from fedrho.server.operations.dashboard.past import Past, Pasts
from fedrho.server.operations.dashboard.shown import FILTERS, minute, percent
from fedrho.server.operations.dashboard.sources import Snapshot, Source
from fedrho.server.operations.exported import statement_json
from fedrho.server.population import ENDED, RunView

PAGE: Final = 50
"""Releases on one page of the history."""
ROWS: Final = 24
"""Of the table beside a chart."""


class NoSuchPage(KeyError):
    """There is nothing of that name."""


@dataclass(frozen=True)
class Chart:
    """An SVG, and the same numbers as a table."""

    svg: str
    head: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    note: str = ""


class Pages:
    """`live` says whether a server is behind it, whose runs go on."""

    def __init__(self, source: Source, live: bool) -> None:
        self._source, self._live = source, live
        self._pasts = Pasts(source.store)
        self._prices: dict[bytes, Prices] = {}
        self._charts: dict[bytes, tuple[Hashable, list[Chart]]] = {}
        self._templates = Environment(
            loader=PackageLoader(__package__), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        self._templates.filters.update(FILTERS)

    def login(self, said: str) -> str:
        return self._page("login.html", said=said)

    def problem(self, title: str, text: str) -> str:
        return self._page("problem.html", title=title, text=text)

    def overview(self, now: Snapshot, form: str) -> str:
        delta = min((view.delta for view in now.views), default=None)
        parts: list[tuple[str, str, int, int, float, float]]
        parts = [(view.name, view.state.value, view.step, view.steps, view.statement.rho, _most(view)) for view in now.views]
        parts += [(one.name, one.state, one.step, one.steps, one.rho, one.rho_budget) for one in now.elsewhere]
        together = None if now.combined is None or delta is None else claim(now.combined, delta)
        return self._page(
            "overview.html",
            now=now,
            form=form,
            parts=parts,
            together=together,
            share=_share(now),
            for_all=of_all(now, self._live),
            advice={view.name: self._advice(view, now) for view in now.views},
        )

    def run(self, now: Snapshot, name: str, form: str) -> str:
        view = _named(now, name)
        past = self._pasts.of(view.run, view.step)
        ahead = self._forecast(view, past, now.at)
        return self._page(
            "run.html",
            now=now,
            form=form,
            view=view,
            past=past,
            ahead=ahead,
            used_at=_released_at(past, ahead),
            budget_share=percent(view.statement.rho, view.rho_budget),
            advice=[*of_all(now, self._live), *of_run(view, now, self._live, past, ahead)],
            charts=self._drawn(view, past, now.at),
            claim=claim(view.statement, view.delta),
            words=in_words(view.statement, view.delta) if view.step else [],
        )

    def history(self, now: Snapshot, name: str, number: int, form: str) -> str:
        """The newest releases first; raises NoSuchPage beyond the last page."""
        view = _named(now, name)
        past = self._pasts.of(view.run, view.step)
        newest = list(zip(past.entries, past.links, strict=True))[::-1]
        pages = max(1, math.ceil(len(newest) / PAGE))
        if not 1 <= number <= pages:
            raise NoSuchPage(name)
        shown = newest[(number - 1) * PAGE : number * PAGE]
        return self._page("history.html", now=now, form=form, view=view, past=past, shown=shown, number=number, pages=pages)

    def statement(self, now: Snapshot, name: str) -> str:
        """The run's statement as `fedrho export` writes it; raises NoSuchPage before the first release."""
        view = _named(now, name)
        past = self._pasts.of(view.run, view.step, at_once=True)
        if not 0 < view.step < len(past.entries):
            raise NoSuchPage(name)
        digest, link = past.entries[view.step].weights_sha256, past.links[view.step]  # a newer one may be there by now
        return statement_json(view, view.step, view.statement, digest, link)

    # -- helpers ---------------------------------------------------------------------------------------------------------

    def _page(self, template: str, **values: Any) -> str:
        return self._templates.get_template(template).render(live=self._live, **values)

    def _advice(self, view: RunView, now: Snapshot) -> list[Advice]:
        """As far as it is known without reading a history, which may take long where there are many."""
        past = self._pasts.known(view.run)
        return of_run(view, now, self._live, past, None if past is None else self._forecast(view, past, now.at))

    def _forecast(self, view: RunView, past: Past, now: float) -> Forecast | None:
        """None where nothing is to come, or nothing is known."""
        if not past.entries or view.state in ENDED:
            return None
        return forecasts.forecast(self._prices_of(view), _latest(view, past.entries), forecasts.pace(past.entries), now)

    def _prices_of(self, view: RunView) -> Prices:
        if view.run not in self._prices:
            self._prices[view.run] = Prices(self._source.task(view.run))
        return self._prices[view.run]

    def _drawn(self, view: RunView, past: Past, now: float) -> list[Chart]:
        """Anew only where a step was released since, or the steps to come have moved."""
        if past.step == 0:
            return []
        ahead = self._ahead(view, past.entries, now)
        drawn, known = (past.step, ahead[1:2]), self._charts.get(view.run)
        if known is None or known[0] != drawn:
            charts = [_spent(view, past.entries, ahead), _durations(view, past.entries)]
            known = self._charts[view.run] = (drawn, charts)
        return known[1]

    def _ahead(self, view: RunView, entries: Sequence[Entry], now: float) -> tuple[tuple[int, float, float], ...]:
        pace = forecasts.pace(entries)
        if pace is None or view.state in ENDED:
            return ()
        return tuple(forecasts.ahead(self._prices_of(view), _latest(view, entries), pace, now))


def _released_at(past: Past, ahead: Forecast | None) -> float | None:
    """When rho rose last, if that was released."""
    return past.entries[ahead.last_rise].committed_at if ahead is not None and ahead.last_rise <= past.step else None


def _latest(view: RunView, entries: Sequence[Entry]) -> Latest:
    """Whichever knows more: the history is read after a view was taken, and is left alone for a while where it is long."""
    known = entries[-1]
    return Latest(known.step, known.committed_at) if known.step >= view.step else Latest(view.step, view.committed_at)


def claim(statement: PrivacyStatement, delta: float) -> Mapping[str, Any]:
    """Rows and assumptions; at rho 0 there is nothing to convert."""
    rows = statement.rows(delta) if statement.rho > 0 else []
    return {"rows": rows, "assumptions": statement.assumptions}


def _named(now: Snapshot, name: str) -> RunView:
    view = now.named(name)
    if view is None:
        raise NoSuchPage(name)
    return view


def _most(view: RunView) -> float:
    return view.statement.rho if view.state in ENDED else view.rho_budget


def _share(now: Snapshot) -> str:
    return "0 %" if now.combined is None else percent(now.combined.rho, now.rho_budget)


# -- charts ----------------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _charts_module() -> ModuleType:
    from fedrho.server.operations.dashboard import charts  # a second, and matplotlib's memory

    return charts


def _spent(view: RunView, entries: Sequence[Entry], ahead: Sequence[tuple[int, float, float]]) -> Chart:
    past = thinned(entries, 300)
    svg = _charts_module().spent(
        view.name, [(one.committed_at, one.rho) for one in past], [(at, rho) for _, at, rho in ahead], view.rho_budget
    )
    rows = [(str(one.step), minute(one.committed_at), round_up(one.rho)) for one in thinned(entries, ROWS)]
    rows += [(f"{step} *", minute(at), round_up(price)) for step, at, price in thinned(ahead, ROWS // 2)[1:]]
    return Chart(svg, ("step", "time (UTC)", "rho"), rows, "* to come, at the pace of late" if ahead else "")


def _durations(view: RunView, entries: Sequence[Entry]) -> Chart:
    took = [(one.step, one.committed_at - one.opened_at) for one in entries if one.step > 0]
    shown = took[-300:]
    median = sorted(seconds for _, seconds in shown)[len(shown) // 2]
    svg = _charts_module().durations(view.name, [step for step, _ in shown], [seconds for _, seconds in shown], median)
    return Chart(svg, ("step", "seconds"), [(str(step), f"{seconds:.3g}") for step, seconds in thinned(shown, ROWS)])
