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
    """The nearest allowed widths; while a part of the budget is exceeded, the one that was rounded up most
    goes down.

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
    while (over := _over(budget, costs, bits, split)) is not None:
        lower = {
            number: max(one for one in choices[number] if one < bits[number])
            for number in range(len(bits))
            if free[number] and bits[number] > choices[number][0] and _counts(over, number, split)
        }
        if not lower:
            raise SizeBudgetError(
                f"--budget {budget.text}: the fewest bits of every site are too many",
                hint="a larger --budget, or a target with fewer bits",
            )
        number = min(lower, key=lambda one: _regret(learned[one], bits[one], lower[one]))
        bits[number] = lower[number]
    return FrozenWidths(
        weights=tuple(bits[:split]),
        activations=tuple(bits[split:]),
        lowered=sum(now < before for now, before in zip(bits, nearest, strict=True)),
    )


def _over(budget: Budget, costs: Costs, bits: Sequence[int], split: int) -> str | None:
    """Which part of the budget is exceeded: weights, activations or both together."""
    found = parts(
        budget,
        costs,
        torch.tensor(bits[:split], dtype=torch.float64),
        torch.tensor(bits[split:], dtype=torch.float64),
    )
    return next((name for name, spent, most, _ in found if float(spent) > most * (1.0 + _ROOM)), None)


def _counts(part: str, number: int, split: int) -> bool:
    return part == "both" or (part == "weights") == (number < split)


def _regret(learned: float, now: int, lower: int) -> float:
    """How much further from the learned width a site comes, squared."""
    return (learned - lower) ** 2 - (learned - now) ** 2
