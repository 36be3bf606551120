"""What is printed is never better than what is true, and only like is added to like."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedrho.privacy.statement import Neighbours, PrivacyStatement, Unit, compose, round_down, round_up
from fedrho.privacy.zcdp import Rho, epsilon

DEVICE = PrivacyStatement(Unit.DEVICE, Neighbours.ZERO_OUT, Rho(0.3), ("clients are honest",))
deltas = st.floats(-12, -2).map(lambda exponent: 10.0**exponent)


def printed(statement: PrivacyStatement, row: str, delta: float) -> str:
    return dict(statement.rows(delta))[row]


@settings(deadline=None)
@given(st.floats(5e-324, 1e250), st.integers(1, 8))
@example(0.07, 4)
@example(0.80612245, 4)
@example(8.8985, 4)
@example(9999.5, 4)
@example(0.99999, 4)
@example(123456789.0, 4)
def test_rounding_never_goes_down_and_adds_at_most_one_in_the_last_digit(value: float, digits: int) -> None:
    shown = Fraction(float(round_up(value, digits)))
    # One unit of the last digit is at most 10**(1 - digits) of the value; floats may put an exact value one unit up.
    assert value <= shown <= Fraction(value) * (1 + Fraction(11, 10) * Fraction(10) ** (1 - digits))


@settings(deadline=None)
@given(st.floats(1e-6, 1e6), st.integers(2, 6))
def test_few_digits_are_shown(value: float, digits: int) -> None:
    mantissa = round_up(value, digits).split("e")[0].replace(".", "").strip("0")
    assert len(mantissa) <= max(digits, 7)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (0.5, "0.5"), (2.0, "2"), (0.80612245, "0.8062"), (8.92221, "8.923"), (0.99999, "1"), (0.81, "0.81")],
)
def test_examples_of_rounding(value: float, shown: str) -> None:
    assert round_up(value) == shown


@settings(deadline=None)
@given(st.floats(1e-4, 20).map(Rho), deltas)
@example(Rho(1.328), 2.037025e-07)
def test_a_printed_claim_is_never_stronger_than_the_computed_one(rho: Rho, delta: float) -> None:
    """Also at the printed delta: an epsilon is only true at its own delta or a larger one."""
    statement = PrivacyStatement(Unit.DEVICE, Neighbours.ZERO_OUT, rho, ())
    shown_rho = float(printed(statement, "rho", delta).split()[0])
    shown_epsilon, shown_delta = map(float, printed(statement, "epsilon", delta).split(" at delta = "))
    assert shown_rho >= rho
    assert shown_epsilon >= epsilon(rho, delta)
    assert shown_epsilon >= epsilon(rho, shown_delta) * (1 - 1e-12)


def test_a_claim_names_its_unit_and_its_neighbours() -> None:
    assert printed(DEVICE, "unit", 1e-5) == "one device"
    for neighbours in Neighbours:
        statement = PrivacyStatement(Unit.EXAMPLE, neighbours, Rho(1.0), ())
        assert printed(statement, "neighbours", 1e-5).startswith(f"{neighbours.value}: ")


@settings(deadline=None)
@given(st.lists(st.floats(0, 10), min_size=1, max_size=20))
def test_rho_adds_up(rhos: list[float]) -> None:
    whole = compose(PrivacyStatement(Unit.DEVICE, Neighbours.ZERO_OUT, Rho(rho), ()) for rho in rhos)
    assert whole.rho == float(sum(map(Fraction, rhos)))
    assert (whole.unit, whole.neighbours) == (Unit.DEVICE, Neighbours.ZERO_OUT)


def test_assumptions_accumulate_once_each_in_order() -> None:
    parts = [
        PrivacyStatement(Unit.DEVICE, Neighbours.ZERO_OUT, Rho(0.1), texts) for texts in (("a", "b"), ("b", "c"), (), ("a", "d"))
    ]
    assert compose(parts).assumptions == ("a", "b", "c", "d")


def test_statements_of_different_units_or_neighbours_are_not_added() -> None:
    for unit in set(Unit) - {DEVICE.unit}:
        with pytest.raises(ValueError, match="one unit"):
            compose([DEVICE, PrivacyStatement(unit, DEVICE.neighbours, Rho(0.1), ())])
    for neighbours in set(Neighbours) - {DEVICE.neighbours}:
        with pytest.raises(ValueError, match="one neighbour"):
            compose([DEVICE, PrivacyStatement(DEVICE.unit, neighbours, Rho(0.1), ())])


def test_nothing_composes_to_no_claim() -> None:
    with pytest.raises(ValueError, match="one unit"):
        compose([])


@pytest.mark.parametrize("rho", [0.1, 0.81, 10.0])
def test_the_event_costs_in_dp_accounting_what_the_statement_says(rho: float) -> None:
    """dp_accounting searches a grid of orders, ours all of them: never above, and no more than the grid's gap below."""
    from dp_accounting.rdp import RdpAccountant

    claim = PrivacyStatement(Unit.DEVICE, Neighbours.ZERO_OUT, Rho(rho), ())
    accountant = RdpAccountant(orders=[1 + order / 200 for order in range(1, 4000)])
    accountant.compose(claim.event())
    theirs, ours = accountant.get_epsilon(1e-6), claim.epsilon(1e-6)
    assert 0.999 * theirs <= ours <= theirs


@pytest.mark.parametrize("rho", [-0.1, float("nan"), float("inf")])
def test_a_price_that_means_nothing_makes_no_statement(rho: float) -> None:
    """A negative one would give budget back, and NaN is above no budget."""
    with pytest.raises(ValueError, match="rho"):
        PrivacyStatement(Unit.DEVICE, Neighbours.ZERO_OUT, Rho(rho), ())


@settings(deadline=None)
@given(st.floats(5e-324, 1e250), st.integers(1, 8))
@example(0.07, 4)
@example(9999.5, 4)
def test_rounding_down_never_goes_up_and_takes_at_most_one_in_the_last_digit(value: float, digits: int) -> None:
    shown = Fraction(float(round_down(value, digits)))
    assert Fraction(value) * (1 - Fraction(11, 10) * Fraction(10) ** (1 - digits)) <= shown <= value


def test_one_bound_among_the_parts_makes_the_sum_a_bound() -> None:
    bound = PrivacyStatement(Unit.DEVICE, Neighbours.ZERO_OUT, Rho(0.1), (), exact=False)
    assert compose([DEVICE, DEVICE]).exact
    assert not compose([DEVICE, bound]).exact
    assert "a proven bound" in printed(bound, "rho", 1e-5)
    assert "exact sensitivity" in printed(DEVICE, "rho", 1e-5)
