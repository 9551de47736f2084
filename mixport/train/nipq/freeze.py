"""From learned widths to whole numbers that the target has and the budget allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mixport.records.errors import SizeBudgetError
from mixport.train.nipq.budget import Budget, Costs, parts

_ROOM = 1e-6
"""Relative; sums of float32 widths."""


@dataclass(frozen=True, kw_only=True)
class FrozenWidths:
    """Whole widths.

    Attributes:
        weights: of each layer.
        activations: of each free site.
        lowered: sites and layers whose width is below the nearest one, for the budget's sake.
    """

    weights: tuple[int, ...]
    activations: tuple[int, ...]
    lowered: int


def freeze(
    budget: Budget,
    costs: Costs,
    *,
    weights: Sequence[float],
    activations: Sequence[float],
    allowed: tuple[Sequence[int], Sequence[int]],
) -> FrozenWidths:
    """The nearest allowed widths; while a part of the budget is exceeded, the one goes down that comes least
    further from its learned width for what it saves. What is left over then is spent.

    Args:
        budget: what is allowed.
        costs: of the sites; a weight or activation whose cost is 0 is fixed and keeps its width.
        weights: learned bits of each layer.
        activations: learned bits of each free site.
        allowed: (weight bits, activation bits) of the target.

    Raises:
        SizeBudgetError: the fewest bits everywhere are too many.
    """
    learned = [*weights, *activations]
    free = [count > 0 for count in (*costs.weights, *costs.activations)]
    choices = [sorted(allowed[0])] * len(weights) + [sorted(allowed[1])] * len(activations)
    bits = [
        min(choice, key=lambda one: (abs(one - wanted), one)) if is_free else round(wanted)
        for wanted, choice, is_free in zip(learned, choices, free, strict=True)
    ]
    nearest, split = list(bits), len(weights)
    while (over := _excess(budget, costs, bits, split)) > 0.0:
        gains: dict[int, tuple[float, int]] = {}
        for number in range(len(bits)):
            narrower = [one for one in choices[number] if one < bits[number]]
            if not free[number] or not narrower:
                continue
            lowered = [*bits[:number], narrower[-1], *bits[number + 1 :]]
            saved = over - _excess(budget, costs, lowered, split)
            if saved > 0.0:
                gains[number] = (_regret(learned[number], bits[number], narrower[-1]) / saved, narrower[-1])
        if not gains:
            raise SizeBudgetError(
                f"--budget {budget.text}: the fewest bits of every site are too many",
                hint="a larger --budget, or a target with fewer bits",
            )
        number = min(gains, key=lambda one: gains[one][0])
        bits[number] = gains[number][1]
    _fill(budget, costs, bits, learned, choices, free, split)
    return FrozenWidths(
        weights=tuple(bits[:split]),
        activations=tuple(bits[split:]),
        lowered=sum(now < before for now, before in zip(bits, nearest, strict=True)),
    )


def _fill(
    budget: Budget,
    costs: Costs,
    bits: list[int],
    learned: Sequence[float],
    choices: Sequence[Sequence[int]],
    free: Sequence[bool],
    split: int,
) -> None:
    """Use what is left over: widths go up one by one while they fit, those first whose next width is least
    above the learned one.
    """
    raised = True
    while raised:
        raised = False
        wider = {
            number: min(one for one in choices[number] if one > bits[number])
            for number in range(len(bits))
            if free[number] and bits[number] < choices[number][-1]
        }
        for number, wanted in sorted(wider.items(), key=lambda one: one[1] - learned[one[0]]):
            tried = [*bits[:number], wanted, *bits[number + 1 :]]
            if _excess(budget, costs, tried, split) <= 0.0:
                bits[number], raised = wanted, True


def _excess(budget: Budget, costs: Costs, bits: Sequence[int], split: int) -> float:
    """What is spent beyond the budget, in bits on average, over all its parts."""
    found = parts(
        budget,
        costs,
        torch.tensor(bits[:split], dtype=torch.float64),
        torch.tensor(bits[split:], dtype=torch.float64),
    )
    over = [(float(spent) - most * (1.0 + _ROOM)) / bit for _, spent, most, bit in found]
    return sum(max(0.0, one) for one in over)


def _regret(learned: float, now: int, lower: int) -> float:
    """How much further from the learned width a site comes, squared."""
    return (learned - lower) ** 2 - (learned - now) ** 2
