"""The symmetry loss, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mixport.train.robust.symreg import Pairing, SortedWeights, symmetry_loss


def loss(values: list[float], pairing: Pairing) -> float:
    weight = torch.tensor(values)
    return float(symmetry_loss(weight, torch.argsort(weight), pairing=pairing))


@pytest.mark.parametrize("pairing", ["1:1", "2:2"])
@pytest.mark.parametrize("values", [[-2.0, 1.0, 2.0, -1.0], [3.0, 0.5, -0.5, -3.0, 0.0], [0.0, 0.0]])
def test_symmetric_weights_lose_nothing(values: list[float], pairing: Pairing) -> None:
    assert loss(values, pairing) == 0.0


@pytest.mark.parametrize(
    ("values", "pairing", "wanted"),
    [
        # Sorted -3 -1 2 6: |-3 + 6| and |-1 + 2|.
        ([2.0, -3.0, 6.0, -1.0], "1:1", 2.0),
        # |(-3 + 6) + (-1 + 2)| / 2.
        ([2.0, -3.0, 6.0, -1.0], "2:2", 2.0),
        # Sorted -4 -1 2 3: |-1| and |1|; of two and two they cancel.
        ([-1.0, 2.0, 3.0, -4.0], "1:1", 1.0),
        ([-1.0, 2.0, 3.0, -4.0], "2:2", 0.0),
        # An odd count: the one in the middle has no partner.
        ([5.0, 100.0, -1.0], "1:1", 99.0),
        ([-1.0, 1.5, 0.25], "1:1", 0.5),
        # Sorted -6 -2 0 1 2: -4 and -1, of two and two -5 / 2.
        ([1.0, 0.0, -2.0, 2.0, -6.0], "1:1", 2.5),
        ([1.0, 0.0, -2.0, 2.0, -6.0], "2:2", 2.5),
        # Sorted -3 -2 -1 1 4 5: three pairs, 2 2 0, and of 2:2 the third is left out.
        ([-3.0, -2.0, -1.0, 5.0, 1.0, 4.0], "1:1", 4 / 3),
        ([-3.0, -2.0, -1.0, 5.0, 1.0, 4.0], "2:2", 2.0),
        # Two weights are one pair, whatever is asked for.
        ([1.0, 2.0], "2:2", 3.0),
        ([-1.0, 2.0, 3.0], "2:2", 2.0),
    ],
)
def test_sums_of_pairs_by_hand(values: list[float], pairing: Pairing, wanted: float) -> None:
    # Small integers and halves: only the mean of three rounds.
    assert loss(values, pairing) == float(torch.tensor(wanted))


@pytest.mark.parametrize("pairing", ["1:1", "2:2"])
def test_a_weight_alone_has_no_partner(pairing: Pairing) -> None:
    assert loss([2.0], pairing) == 0.0


def test_the_shape_of_the_weights_does_not_matter() -> None:
    weight = torch.randn((4, 3, 2), generator=torch.Generator().manual_seed(0))
    flat = weight.reshape(-1)
    order = torch.argsort(flat)
    assert float(symmetry_loss(weight, order, pairing="1:1")) == float(
        symmetry_loss(flat, order, pairing="1:1")
    )


def test_the_gradient_pulls_both_of_a_pair() -> None:
    weight = torch.tensor([2.0, -1.0, 0.5, -4.0], requires_grad=True)
    symmetry_loss(weight, torch.argsort(weight.detach()), pairing="1:1").backward()
    # |-4 + 2| and |-1 + 0.5|, both negative sums: each of them is to grow, by a half of the mean.
    assert weight.grad is not None and weight.grad.tolist() == [-0.5, -0.5, -0.5, -0.5]


def test_a_kept_order_pairs_the_same_weights_though_they_moved() -> None:
    weight = torch.tensor([-1.0, 5.0, 2.0, -3.0])
    old = torch.argsort(torch.tensor([-3.0, 2.0, 5.0, -1.0]))
    assert float(symmetry_loss(weight, old, pairing="1:1")) == (abs(-1.0 + 2.0) + abs(-3.0 + 5.0)) / 2


def orders(kept: SortedWeights, weights: list[Tensor], name: str = "a") -> list[list[int]]:
    found: list[list[int]] = []
    for weight in weights:
        found.append(kept.order(name, weight).tolist())
        kept.advance()
    return found


def test_orders_are_made_anew_when_they_are_due() -> None:
    rising, falling = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([[3.0, 2.0, 1.0]])
    found = orders(SortedWeights(refresh=3), [rising, falling, falling, falling, rising, rising, rising])
    up, down = [0, 1, 2], [2, 1, 0]
    assert found == [up, up, up, down, down, down, up]
    assert orders(SortedWeights(refresh=1), [rising, falling, rising]) == [up, down, up]


def test_each_weight_has_its_own_order_from_when_it_was_first_seen() -> None:
    kept = SortedWeights(refresh=2)
    rising, falling = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])
    assert kept.order("a", rising).tolist() == [0, 1]
    kept.advance()
    assert kept.order("a", falling).tolist() == [0, 1]
    assert kept.order("b", falling).tolist() == [1, 0]
    kept.advance()
    assert kept.order("a", falling).tolist() == [1, 0]
    assert kept.order("b", rising).tolist() == [1, 0], "a step old"


def test_within_a_step_the_order_is_sorted_once() -> None:
    kept = SortedWeights(refresh=1)
    assert kept.order("a", torch.tensor([1.0, 2.0])) is kept.order("a", torch.tensor([2.0, 1.0]))
