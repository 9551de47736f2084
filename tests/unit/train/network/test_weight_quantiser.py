"""Weights behind their quantiser while they are trained: codes exactly, gradients by hand."""

# torch leaves some signatures without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mixport.train.network.quantised import code_range
from mixport.train.network.weight_quantiser import QuantisedWeight


def weights(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(bits=st.integers(2, 8), seed=st.integers(0, 50), size=st.floats(2**-12, 2.0, width=32))
def test_values_are_those_of_the_nearest_codes(bits: int, seed: int, size: float) -> None:
    low, high = code_range(bits)
    weight = weights(4, 3, 2, 2, seed=seed)
    scale = size * torch.tensor([1.0, 0.5, 2.0, 0.75])
    got = QuantisedWeight.apply(weight, scale, low, high)
    wide = scale.numpy().reshape(-1, 1, 1, 1)
    codes = np.clip(np.rint(weight.numpy() / wide), low, high)
    # float32 division and product on both sides: the very same values.
    np.testing.assert_array_equal(got.numpy(), codes * wide)


@pytest.mark.parametrize(("bits", "wanted"), [(2, (-2, 1)), (4, (-8, 7)), (7, (-64, 63)), (8, (-127, 127))])
def test_ranges_of_codes(bits: int, wanted: tuple[int, int]) -> None:
    assert code_range(bits) == wanted


def test_ties_go_to_even_codes() -> None:
    weight = torch.tensor([[-1.25, -0.75, -0.25, 0.25, 0.75, 1.25]])
    got = QuantisedWeight.apply(weight, torch.tensor([0.5]), -8, 7)
    assert got.tolist() == [[-1.0, -1.0, 0.0, 0.0, 1.0, 1.0]]


def test_gradients_inside_saturated_and_of_the_scale() -> None:
    # In steps of 0.5: inside, half a step beyond the last codes, and further.
    ratio = torch.tensor([[0.3, -1.2, 1.4, -2.4], [1.6, 5.0, -2.6, 0.8]])
    scale = torch.tensor([0.5, 0.5]).requires_grad_()
    weight = (0.5 * ratio).requires_grad_()
    grad = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    QuantisedWeight.apply(weight, scale, -2, 1).backward(grad)
    assert weight.grad is not None and scale.grad is not None
    assert weight.grad.tolist() == [[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 8.0]]
    # d/d scale: code less ratio inside, code alone beyond (LSQ, equation 3).
    first = 1 * (0 - 0.3) + 2 * (-1 + 1.2) + 3 * (1 - 1.4) + 4 * (-2 + 2.4)
    second = 5 * 1 + 6 * 1 + 7 * -2 + 8 * (1 - 0.8)
    assert scale.grad.tolist() == pytest.approx([first, second], abs=1e-5)  # float32 sums of tens


def test_a_scale_that_stays_gets_no_gradient() -> None:
    weight, scale = weights(3, 2).requires_grad_(), torch.ones(3)
    QuantisedWeight.apply(weight, scale, -8, 7).sum().backward()
    assert scale.grad is None and weight.grad is not None and torch.equal(weight.grad, torch.ones(3, 2))
