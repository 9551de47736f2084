"""From learned widths to whole ones: the budget is kept whatever was learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixport.records.errors import SizeBudgetError
from mixport.train.nipq.budget import Budget, Costs, parts
from mixport.train.nipq.freeze import FrozenWidths, freeze

ALL = range(2, 9)
HALVES = st.integers(4, 16).map(lambda twice: twice / 2)
"""Whole widths, and those right between two of them."""
BITS = st.floats(2.0, 8.0) | HALVES
BUDGETS = (
    st.builds("w{:.2f}a{:.2f}".format, st.floats(2.0, 8.0), st.floats(2.0, 8.0))
    | st.builds("{}b:a{}".format, st.integers(1, 3000), st.integers(2, 8))
    | st.builds("{}bop".format, st.integers(1, 400_000))
)


@dataclass(frozen=True, kw_only=True)
class Case:
    budget: Budget
    costs: Costs
    weights: tuple[float, ...]
    activations: tuple[float, ...]
    allowed: tuple[Sequence[int], Sequence[int]]

    def frozen(self) -> FrozenWidths:
        return freeze(
            self.budget, self.costs, weights=self.weights, activations=self.activations, allowed=self.allowed
        )

    def keeps(self, weights: Sequence[float], activations: Sequence[float]) -> bool:
        found = parts(
            self.budget,
            self.costs,
            torch.tensor(weights, dtype=torch.float64),
            torch.tensor(activations, dtype=torch.float64),
        )
        # A millionth: averages of decimal fractions.
        return all(float(spent) <= most * (1 + 1e-6) for _, spent, most, _ in found)

    def of_free(self, choose: str) -> tuple[list[int], list[int]]:
        """Widths with every free one at the nearest or at the least allowed, and fixed ones as they are."""

        def one(bits: float, cost: int, allowed: Sequence[int]) -> int:
            if not cost:
                return round(bits)
            return min(allowed) if choose == "least" else min(sorted(allowed), key=lambda b: abs(b - bits))

        weights = zip(self.weights, self.costs.weights, strict=True)
        activations = zip(self.activations, self.costs.activations, strict=True)
        return (
            [one(bits, cost, self.allowed[0]) for bits, cost in weights],
            [one(bits, cost, self.allowed[1]) for bits, cost in activations],
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    layers, sites = draw(st.integers(1, 5)), draw(st.integers(0, 4))

    def numbers(count: int, values: st.SearchStrategy[int]) -> tuple[int, ...]:
        return tuple(draw(st.lists(values, min_size=count, max_size=count)))

    costs = Costs(
        weights=numbers(layers, st.sampled_from([0, 1, 50, 900])),
        activations=numbers(sites, st.sampled_from([0, 10, 700])),
        macs=numbers(layers, st.integers(1, 1000)),
        reads=numbers(layers, st.integers(-1, sites - 1)),
        read_bits=numbers(layers, st.integers(2, 8)),
        fixed_bytes=draw(st.sampled_from([0, 100])),
    )
    allowed = st.sets(st.integers(2, 8), min_size=1).map(tuple[int, ...])
    return Case(
        budget=Budget.parse(draw(BUDGETS)),
        costs=costs,
        weights=tuple(draw(st.lists(BITS, min_size=layers, max_size=layers))),
        activations=tuple(draw(st.lists(BITS, min_size=sites, max_size=sites))),
        allowed=(draw(allowed), draw(allowed)),
    )


@settings(max_examples=200, deadline=None)
@given(case=cases())
def test_the_budget_is_kept_with_allowed_widths(case: Case) -> None:
    least, nearest = case.of_free("least"), case.of_free("nearest")
    try:
        found = case.frozen()
    except SizeBudgetError:
        assert not case.keeps(*least), "the fewest bits would have kept it"
        return
    got = (list(found.weights), list(found.activations))
    assert case.keeps(*got)
    for kind, costs in enumerate((case.costs.weights, case.costs.activations)):
        for place, (bits, cost, near) in enumerate(zip(got[kind], costs, nearest[kind], strict=True)):
            if not cost:
                assert bits == near
                continue
            assert bits in case.allowed[kind]
            wider = [one for one in sorted(case.allowed[kind]) if one > bits][:1]
            more = [list(got[0]), list(got[1])]
            more[kind][place] = wider[0] if wider else bits
            assert not wider or not case.keeps(*more), "what is left over is spent"
    if case.keeps(*nearest):
        assert found.lowered == 0
    lower = [now < near for kind in (0, 1) for now, near in zip(got[kind], nearest[kind], strict=True)]
    assert found.lowered == sum(lower)


def case_of(
    budget: str,
    weights: Sequence[float],
    activations: Sequence[float] = (),
    *,
    counts: Sequence[int] | None = None,
    allowed: tuple[Sequence[int], Sequence[int]] = (ALL, ALL),
) -> Case:
    """All weights count alike, all activations do; each layer reads the site of its number, or 8 bits."""
    sites = len(activations)
    return Case(
        budget=Budget.parse(budget),
        costs=Costs(
            weights=tuple(counts or [10] * len(weights)),
            activations=(5,) * sites,
            macs=(100,) * len(weights),
            reads=tuple(number if number < sites else -1 for number in range(len(weights))),
            read_bits=(8,) * len(weights),
        ),
        weights=tuple(weights),
        activations=tuple(activations),
        allowed=allowed,
    )


@pytest.mark.parametrize(("bits", "wanted"), [(2.5, 2), (3.5, 3), (3.5000001, 4), (7.5, 7), (7.9, 8)])
def test_right_between_two_widths_the_lower_one_is_taken(bits: float, wanted: int) -> None:
    budget = f"w{wanted}a8"  # nothing is left over
    assert case_of(budget, [bits]).frozen() == FrozenWidths(weights=(wanted,), activations=(), lowered=0)


def test_the_one_that_was_rounded_up_most_goes_down() -> None:
    found = case_of("w3.5a4", [3.9, 3.6]).frozen()
    assert found == FrozenWidths(weights=(4, 3), activations=(), lowered=1)


def test_all_right_between_two_widths_keep_the_budget() -> None:
    found = case_of("w3.5a3.5", [3.51] * 6, [3.51] * 4).frozen()
    assert sorted(found.weights) == [3, 3, 3, 4, 4, 4] and sorted(found.activations) == [3, 3, 4, 4]
    assert found.lowered == 5


def test_what_is_left_over_is_spent_next_to_what_was_learned() -> None:
    found = case_of("w4a8", [2.4, 3.4, 2.1]).frozen()
    assert found == FrozenWidths(weights=(4, 5, 3), activations=(), lowered=0)
    assert case_of("w3a8", [2.4, 3.4, 2.1]).frozen().weights == (3, 4, 2)


def test_widths_at_the_budget_stay() -> None:
    assert case_of("w2.5a4", [2.0, 3.0], [4.0, 4.0]).frozen().lowered == 0
    assert case_of("w3.3a4", [3.0] * 7 + [4.0] * 3).frozen().lowered == 0, "3.3 is no binary fraction"


def test_a_width_goes_down_more_than_once_where_it_must() -> None:
    found = case_of("w2a2", [8.0, 3.0], [8.0]).frozen()
    assert found == FrozenWidths(weights=(2, 2), activations=(2,), lowered=3)


def test_only_widths_that_the_target_has() -> None:
    found = case_of("w5a4", [4.4, 6.2], [6.9], allowed=((8, 2, 4), (8, 3))).frozen()
    assert found == FrozenWidths(weights=(4, 4), activations=(3,), lowered=2)


def test_fixed_widths_stay_and_do_not_count() -> None:
    found = case_of("w2a8", [8.0, 3.0], counts=[0, 10], allowed=((2, 3), ALL)).frozen()
    assert found == FrozenWidths(weights=(8, 2), activations=(), lowered=1)


def test_bit_operations_lower_weights_and_activations() -> None:
    case = case_of("2400bop", [4.0, 4.6], [4.0, 3.6])
    found = case.frozen()
    # 100 * (4 * 4 + 5 * 4) at the nearest widths is too much; two of the four were rounded up.
    assert found.lowered >= 2 and case.keeps(found.weights, found.activations)
    assert found.weights[1] < 5 and found.activations[1] < 4


@pytest.mark.parametrize("budget", ["w2.5a8", "w8a2.5", "7b", "1bop"])
def test_a_budget_that_the_fewest_bits_exceed_is_refused(budget: str) -> None:
    case = case_of(budget, [4.0, 4.0], [4.0], allowed=((3, 4), (3, 4)))
    with pytest.raises(SizeBudgetError) as caught:
        case.frozen()
    assert str(caught.value).startswith(f"--budget {budget}: ")
