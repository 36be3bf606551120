"""The population's ledger against a plain dictionary of numbers."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrho.privacy.ledger import BudgetExhausted, Ledger
from fedrho.privacy.statement import Neighbours, PrivacyStatement, Unit
from fedrho.privacy.zcdp import Rho

charges = st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 2)), max_size=30)


def priced(rho: float, unit: Unit = Unit.DEVICE, neighbours: Neighbours = Neighbours.ZERO_OUT) -> PrivacyStatement:
    return PrivacyStatement(unit, neighbours, Rho(rho), (f"costs {rho}",))


@given(charges, st.floats(0.5, 5))
def test_any_list_of_charges_leaves_what_a_plain_sum_leaves(tried: list[tuple[str, float]], budget: float) -> None:
    ledger, plain = Ledger(Rho(budget)), dict[str, float]()
    for run, rho in tried:
        if rho < plain.get(run, 0.0):
            with pytest.raises(ValueError, match=f"run '{run}'"):
                ledger.charge(run, priced(rho))
        elif float(sum(map(Fraction, {**plain, run: rho}.values()))) > budget:
            with pytest.raises(BudgetExhausted, match="above the budget"):
                ledger.charge(run, priced(rho))
        else:
            ledger, plain[run] = ledger.charge(run, priced(rho)), rho
        assert {name: part.rho for name, part in ledger.runs.items()} == plain
        assert ledger.spent == float(sum(map(Fraction, plain.values()))) <= budget


def test_a_charge_makes_a_new_ledger_and_leaves_the_old_one_alone() -> None:
    empty = Ledger(Rho(1.0))
    one = empty.charge("a", priced(0.25))
    two = one.charge("b", priced(0.5)).charge("a", priced(0.5))
    assert (empty.spent, one.spent, two.spent) == (0.0, 0.25, 1.0)
    with pytest.raises(BudgetExhausted, match=r"other runs on these devices have spent 1$"):
        two.charge("c", priced(1e-9))
    assert two.spent == 1.0


def test_exactly_the_budget_may_be_spent_and_the_next_float_not() -> None:
    assert Ledger(Rho(0.1)).charge("a", priced(0.1)).spent == 0.1
    with pytest.raises(BudgetExhausted):
        Ledger(Rho(0.1)).charge("a", priced(math.nextafter(0.1, 1)))


def test_ten_tenths_do_not_overspend_one_by_rounding() -> None:
    """A running sum of floats would be 0.9999999999999999; fsum is 1, which is allowed, and one more charge is not."""
    ledger = Ledger(Rho(1.0))
    for run in range(10):
        ledger = ledger.charge(str(run), priced(0.1))
    with pytest.raises(BudgetExhausted):
        ledger.charge("one more", priced(1e-15))


def test_other_units_and_neighbours_are_refused() -> None:
    ledger = Ledger(Rho(1.0)).charge("a", priced(0.1))
    with pytest.raises(ValueError, match="one unit"):
        ledger.charge("b", priced(0.1, unit=Unit.EXAMPLE))
    for neighbours in (Neighbours.ADD_OR_REMOVE, Neighbours.REPLACE):
        with pytest.raises(ValueError, match="one neighbour"):
            ledger.charge("b", priced(0.1, neighbours=neighbours))


def test_the_statement_is_about_all_runs_and_names_every_assumption() -> None:
    whole = Ledger(Rho(1.0)).charge("a", priced(0.25)).charge("b", priced(0.5)).statement()
    assert (whole.rho, whole.assumptions) == (0.75, ("a: costs 0.25", "b: costs 0.5"))
    alike = Ledger(Rho(1.0)).charge("a", priced(0.25)).charge("b", priced(0.25)).statement()
    assert (alike.rho, alike.assumptions) == (0.5, ("costs 0.25",))
    assert Ledger(Rho(1.0)).charge("a", priced(0.25)).statement() == priced(0.25)
    with pytest.raises(ValueError, match="one unit"):
        Ledger(Rho(1.0)).statement()


def test_a_ledger_cannot_be_made_or_changed_into_an_overspent_one() -> None:
    with pytest.raises(BudgetExhausted, match="above the budget 1"):
        Ledger(Rho(1.0), {"a": priced(5.0)})
    outside = {"a": priced(0.5)}
    ledger = Ledger(Rho(1.0), outside)
    outside["a"] = priced(9.0)
    assert ledger.spent == 0.5
    with pytest.raises(TypeError):
        ledger.runs["a"] = priced(9.0)  # type: ignore[index]


@pytest.mark.parametrize("budget", [0.0, -1.0, math.nan, math.inf])
def test_a_budget_that_means_nothing_is_refused(budget: float) -> None:
    with pytest.raises(ValueError, match="budget"):
        Ledger(Rho(budget))


@pytest.mark.parametrize("rho", [math.nan, math.inf, -0.5])
def test_a_charge_that_means_nothing_is_never_taken(rho: float) -> None:
    """Not even into an empty ledger: a NaN compares as neither above the budget nor below."""
    with pytest.raises((ValueError, BudgetExhausted)):
        Ledger(Rho(1.0)).charge("a", priced(rho))
