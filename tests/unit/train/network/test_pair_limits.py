"""The bound of neighbouring products on weights that are trained."""

# torch leaves some signatures without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixport.arithmetic.neighbour_pairs import pair_violations
from mixport.arithmetic.quant_params import QuantParams
from mixport.train.network.pair_limits import PairLimit, pair_limit_of

LIMIT = 32767


def params(qmax: int = 255, zero_point: int = 0) -> QuantParams:
    return QuantParams(scale=0.1, zero_point=zero_point, qmin=0, qmax=qmax, storage="uint8")


def limit_of(shape: tuple[int, ...], *, qmax: int = 255) -> PairLimit:
    found = pair_limit_of(shape, largest_weight=127, groups=1, x=params(qmax), limit=LIMIT)
    assert found is not None
    return found


def codes_of(weight: Tensor, scale: Tensor) -> np.ndarray:
    wide = scale.view(-1, *[1] * (weight.dim() - 1))
    return torch.round(weight / wide).clamp(-127, 127).to(torch.int8).numpy()


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([(3, 5), (2, 3, 3, 3), (4, 2, 1, 1), (2, 4, 3)]),
    st.integers(0, 2**20),
    st.integers(200, 255),
)
def test_codes_keep_the_bound_after_rounding(shape: tuple[int, ...], seed: int, qmax: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(shape[0], generator=generator) * 0.02 + 1e-3
    wide = scale.view(-1, *[1] * (len(shape) - 1))
    weight = torch.randn(shape, generator=generator) * 90 * wide
    held = limit_of(shape, qmax=qmax).hold(weight, scale)
    assert held.shape == weight.shape
    assert not pair_violations(codes_of(held, scale), largest_code=qmax, limit=LIMIT).any()


def test_pairs_inside_stay_bit_by_bit_and_those_outside_shrink_alike() -> None:
    weight = torch.tensor([[60.0, 60.0, 100.0, 100.0, -120.0, -100.0, 127.0, -127.0]]) * 0.01
    held = limit_of((1, 8)).hold(weight, torch.tensor([0.01]))
    assert torch.equal(held[0, :2], weight[0, :2]), "60 + 60 codes times 255 stay below 32767"
    assert torch.equal(held[0, 6:], weight[0, 6:]), "opposite signs never add up"
    assert float(held[0, 2]) == float(held[0, 3]), "equal weights stay equal"
    assert (
        abs(float(held[0, 2] + held[0, 3]) / 0.01 - 127.0) < 1e-3
    )  # 32767 // 255 = 128, less one for rounding
    torch.testing.assert_close(held[0, 4] / held[0, 5], weight[0, 4] / weight[0, 5], rtol=1e-6, atol=0)


def test_pairs_are_those_of_the_kernel_channels_last() -> None:
    weight = torch.zeros(1, 2, 1, 2)
    weight[0, :, 0, 0] = 1.0  # both channels of one position: a pair
    held = limit_of((1, 2, 1, 2)).hold(weight, torch.tensor([0.01]))
    assert float(held[0, 0, 0, 0]) < 1.0
    apart = torch.zeros(1, 2, 1, 2)
    apart[0, 0, 0, :] = 1.0  # one channel at two positions: no pair
    assert torch.equal(limit_of((1, 2, 1, 2)).hold(apart, torch.tensor([0.01])), apart)


def test_no_limit_where_no_pair_can_break_it() -> None:
    assert pair_limit_of((4, 8), largest_weight=127, groups=1, x=params(15), limit=LIMIT) is None
    assert pair_limit_of((4, 8), largest_weight=2, groups=1, x=params(), limit=LIMIT) is None
    assert pair_limit_of((4, 1, 3, 3), largest_weight=127, groups=4, x=params(), limit=LIMIT) is None
    assert pair_limit_of((4, 8), largest_weight=127, groups=1, x=params(), limit=None) is None
    assert pair_limit_of((4, 8), largest_weight=64, groups=1, x=params(), limit=LIMIT) is None


def test_a_zero_point_above_the_largest_code_counts() -> None:
    tight = pair_limit_of((4, 8), largest_weight=127, groups=1, x=params(100, 200), limit=LIMIT)
    loose = pair_limit_of((4, 8), largest_weight=127, groups=1, x=params(200, 100), limit=LIMIT)
    assert tight == loose == PairLimit(up=162.0, down=162.0)
