"""Widths that are learned: where they start, what is drawn, where they are held."""

# torch leaves some signatures without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from mixport.train.nipq.widths import LearnedWidths

FIRST = (3.0, 4.5, 7.25, 5.0)


def widths_of(
    first: Sequence[float] = FIRST, *, allowed: Sequence[int] = range(2, 9), fixed: Sequence[bool] = ()
) -> LearnedWidths:
    return LearnedWidths(first, allowed=allowed, fixed=fixed or [False] * len(first))


def slope(raw: Tensor) -> Tensor:
    """d bits / d raw of 2 + 12 sigmoid."""
    share = torch.sigmoid(raw.detach())
    return 12.0 * share * (1.0 - share)


def test_they_start_where_they_are_told() -> None:
    widths = widths_of()
    assert widths.values() == pytest.approx(FIRST, abs=1e-5)  # a logarithm and back in float32
    wanted = 2.0 + 12.0 / (1.0 + torch.exp(-widths.raw.detach()))
    torch.testing.assert_close(widths.bits().detach(), wanted, rtol=1e-6, atol=0)  # float32
    assert widths.raw.requires_grad and widths.steps_held() == (0, 0, 0, 0)


def test_a_width_that_starts_at_2_bits_can_still_leave() -> None:
    widths = widths_of((2.0,))
    assert widths.values()[0] == pytest.approx(2.0 + 1 / 64, abs=1e-5)
    widths.bits().sum().backward()
    assert widths.raw.grad is not None and float(widths.raw.grad[0]) > 0.01


def test_they_start_within_what_is_allowed() -> None:
    assert widths_of((2.0, 8.0), allowed=(3, 4, 6)).values() == pytest.approx((3.0, 6.0), abs=1e-5)


def test_fixed_widths_are_exact_and_have_no_gradient() -> None:
    widths = widths_of((2.0, 8.0, 4.0), allowed=(3, 4, 6), fixed=(True, True, False))
    assert widths.values()[:2] == (2.0, 8.0)
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        assert widths.sampled(generator)[:2].tolist() == [2.0, 8.0]
    (widths.sampled(generator) + widths.rounded() + widths.bits()).sum().backward()
    assert widths.raw.grad is not None
    assert widths.raw.grad[:2].tolist() == [0.0, 0.0] and float(widths.raw.grad[2]) != 0.0
    with torch.no_grad():
        widths.raw.add_(torch.tensor([50.0, -50.0, 0.0]))
    widths.hold()
    assert widths.values()[:2] == (2.0, 8.0) and widths.steps_held() == (0, 0, 0)


@pytest.mark.parametrize("sampled", [True, False])
def test_rounding_is_straight_through(sampled: bool) -> None:
    widths = widths_of()
    found = widths.sampled(torch.Generator().manual_seed(1)) if sampled else widths.rounded()
    assert torch.equal(found.detach(), found.detach().round())
    found.backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert widths.raw.grad is not None
    wanted = torch.tensor([1.0, 2.0, 3.0, 4.0]) * slope(widths.raw)
    torch.testing.assert_close(widths.raw.grad, wanted, rtol=1e-5, atol=0)  # float32


def test_rounded_widths_are_the_nearest_ones() -> None:
    assert widths_of((3.2, 4.6, 7.1)).rounded().tolist() == [3.0, 5.0, 7.0]


def test_drawn_widths_are_whole_and_right_on_average() -> None:
    widths, generator = widths_of((2.0, 3.0, 4.5, 7.25, 8.0)), torch.Generator().manual_seed(1)
    drawn = torch.stack([widths.sampled(generator).detach() for _ in range(4000)])
    assert torch.equal(drawn, drawn.round())
    assert float(drawn.min()) == 2.0 and float(drawn.max()) == 8.0
    # The deviation of a mean of 4,000 draws of two neighbours is at most 0.008; four of them.
    assert drawn.mean(0).tolist() == pytest.approx(widths.values(), abs=0.032)
    assert set(drawn[:, 2].tolist()) == {4.0, 5.0}


def test_drawn_widths_stay_between_the_fewest_and_the_most_bits() -> None:
    widths = widths_of((3.0, 6.0), allowed=(3, 4, 6))
    with torch.no_grad():
        widths.raw.add_(torch.tensor([-3.0, 3.0]))  # before they are held
    generator = torch.Generator().manual_seed(1)
    assert {tuple(widths.sampled(generator).tolist()) for _ in range(50)} == {(3.0, 6.0)}


def test_the_generator_decides_what_is_drawn() -> None:
    widths = widths_of([4.5] * 40)
    drawn = [widths.sampled(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_widths_that_left_come_back_and_are_counted() -> None:
    widths = widths_of((3.0, 4.0, 5.0), allowed=(3, 4, 6))
    with torch.no_grad():
        widths.raw.add_(torch.tensor([-1.0, 0.0, 9.0]))
    widths.hold()
    assert widths.values() == pytest.approx((3.0, 4.0, 6.0), abs=1e-5)
    assert widths.steps_held() == (1, 0, 1)
    widths.hold()
    assert widths.steps_held() == (1, 0, 1), "at the end is not beyond it"
    with torch.no_grad():
        widths.raw.sub_(torch.tensor([1.0, 0.0, 0.0]))
    widths.hold()
    assert widths.steps_held() == (2, 0, 1)


@pytest.mark.parametrize("sites", [1, 4, 7, 8, 9, 33])
def test_a_width_that_starts_at_an_end_was_not_held(sites: int) -> None:
    for bits in (2.0, 3.0, 8.0):
        widths = widths_of([bits] * sites, allowed=(2, 8) if bits != 3.0 else (3, 5))
        widths.hold()
        assert widths.steps_held() == (0,) * sites


def test_a_checkpoint_holds_widths_and_counts() -> None:
    widths, other = widths_of(), widths_of((4.0,) * 4)
    with torch.no_grad():
        widths.raw.add_(20.0)
    widths.hold()
    other.load_state_dict(widths.state_dict())
    assert other.values() == widths.values() and other.steps_held() == (1, 1, 1, 1)
