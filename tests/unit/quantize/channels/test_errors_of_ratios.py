from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from mixport.quantize.channels.errors_of_ratios import (
    Array,
    Reader,
    learned_error,
    nearest_error,
    rows_wanted,
)
from mixport.quantize.scales.ranges import ScaleRule

_RULE = ScaleRule()
_JUDGES = [nearest_error, learned_error]


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def positive(channels: int, *, rows: int = 4096) -> Tensor:
    """What lies behind a Relu: positive, channels that move together, one of them 16 times as wide as the
    others.
    """
    mixed = torch.randn(rows, channels, generator=draws(0)) @ torch.randn(
        channels, channels, generator=draws(1)
    )
    rows_ = torch.relu(mixed + 2)
    rows_[:, 0] *= 16
    return rows_


def error(
    judge: Callable[..., float], rows: Tensor, ratio: Array, readers: Sequence[Reader], *, bits: int = 4
) -> float:
    return judge(rows, ratio, readers, bits=bits, bounds=(0.0, None), rule=_RULE)


def even(channels: int) -> Array:
    return np.ones(channels)


def levelled(channels: int) -> Array:
    ratio = np.full(channels, 1 / 16)
    ratio[0] = 1.0
    return ratio


def full(weight: Tensor, *, bits: int = 4) -> Reader:
    return Reader.of(weight, groups=1, bits=bits)


@pytest.mark.parametrize("judge", _JUDGES)
def test_a_depthwise_reader_wins_all_that_levelling_gives(judge: Callable[..., float]) -> None:
    """Each of its weights has a scale of its own, so that only the tensor's codes differ."""
    reader = Reader.of(torch.randn(8, 1, 3, 3, generator=draws(2)), groups=8, bits=4)
    rows = positive(8)
    assert error(judge, rows, levelled(8), [reader]) < error(judge, rows, even(8), [reader])


def test_learned_rounding_costs_a_fraction_of_rounding_to_nearest() -> None:
    """Both about the mean: positive inputs that move together let the error of one weight undo that of
    another.
    """
    weight, rows = torch.randn(16, 24, 1, 1, generator=draws(3)), positive(24)
    fine = error(learned_error, rows, even(24), [full(weight, bits=8)], bits=8)
    learned, nearest = (
        error(judge, rows, even(24), [full(weight)], bits=8) for judge in (learned_error, nearest_error)
    )
    assert fine < learned < 0.6 * nearest


def test_where_weights_are_learned_levelling_pays_earlier() -> None:
    """A wide channel behind small weights: rounded to nearest its neighbours' weights lose more than its
    neighbours' codes gain.
    """
    weight, rows = torch.randn(16, 24, 1, 1, generator=draws(4)), positive(24)
    weight[:, 0] /= 4
    gains = [
        error(judge, rows, levelled(24) ** 0.5, [full(weight)]) / error(judge, rows, even(24), [full(weight)])
        for judge in _JUDGES
    ]
    assert gains[1] < 1 and gains[1] < gains[0]


def test_constant_inputs_cost_nothing_where_the_bias_follows() -> None:
    """Whatever weights make of a constant is an offset."""
    weight = torch.randn(8, 8, 1, 1, generator=draws(5))
    weight[:, :4] = torch.sign(weight[:, :4])
    rows, dead = positive(8), positive(8)
    rows[:, 4:], dead[:, 4:] = 3.0, 0.0
    with_them, without = (error(learned_error, one, even(8), [full(weight)], bits=8) for one in (rows, dead))
    assert with_them == pytest.approx(without, rel=1e-3)
    with_them, without = (error(nearest_error, one, even(8), [full(weight)], bits=8) for one in (rows, dead))
    assert with_them > 1.02 * without


@pytest.mark.parametrize("judge", _JUDGES)
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_few_places_give_a_finite_error(judge: Callable[..., float], rows: int) -> None:
    assert np.isfinite(
        error(judge, positive(4, rows=rows), even(4), [full(torch.randn(3, 4, 3, 3, generator=draws(6)))])
    )


@pytest.mark.parametrize("judge", _JUDGES)
def test_a_dead_tensor_has_no_error(judge: Callable[..., float]) -> None:
    assert (
        error(judge, torch.zeros(64, 4), even(4), [full(torch.randn(3, 4, 1, 1, generator=draws(7)))]) == 0.0
    )


@pytest.mark.parametrize(
    ("channels", "learned", "rows"),
    [(16, False, 2**16), (960, False, 2048), (16, True, 2**16), (4096, True, 2**14)],
)
def test_places_are_drawn_for_ranges_and_for_errors(channels: int, learned: bool, rows: int) -> None:
    assert rows_wanted(channels, values=1 << 20, learned=learned) == rows
