from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixport.quantize.channels.one_range import rounded
from mixport.quantize.channels.rotation import Array, Places, learn_rotation
from mixport.quantize.scales.ranges import ScaleRule

_RULE = ScaleRule()


def peaked(rows: int, channels: int, seed: int) -> Tensor:
    """Channels of variance 1, independent, most values near zero and a few far out."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, channels)) * rng.choice([0.25, 3.0], (rows, channels), p=[0.9, 0.1])
    return torch.as_tensor((values / values.std(0)).astype(np.float32))


def places(values: Tensor, *, fisher: Array | None = None, bits: int = 4) -> Places:
    half = len(values) // 2
    return Places(
        learned=values[:half],
        judged=values[half:],
        fisher=np.eye(values.shape[1]) if fisher is None else fisher,
        bits=bits,
    )


def noise(rotation: Array, one: Places) -> float:
    """Of the codes that the quantiser to come chooses, as the outputs see it, on places that nothing was
    learned from.
    """
    turned = (one.judged.numpy() @ rotation.T).astype(np.float32)
    wrong = (rounded(turned, bits=one.bits, rule=_RULE) - turned) @ rotation
    return float(np.einsum("ni,ij,nj->", wrong, one.fisher, wrong)) / len(turned)


def drawn(channels: int, seed: int) -> Array:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((channels, channels)))[0]


@pytest.mark.parametrize(("bits", "share"), [(2, 1.0), (3, 0.75), (4, 0.5)])
def test_rare_large_values_are_spread_better_than_by_drawn_rotations(bits: int, share: float) -> None:
    """At two bits spreading hardly helps, the drawn ones are worse than none."""
    one = places(peaked(8000, 8, seed=0), bits=bits)
    learned = noise(learn_rotation([one]), one)
    assert learned < share * noise(np.eye(8), one)
    assert learned < min(noise(drawn(8, seed), one) for seed in range(8))


def test_what_the_outputs_do_not_see_is_not_served() -> None:
    """Two channels matter and are calm; two do not, and are peaked: the two that matter must not be given
    their peaks.
    """
    calm = torch.randn(8000, 2, generator=torch.Generator().manual_seed(1))
    one = places(torch.cat([calm, peaked(8000, 2, seed=1)], 1), fisher=np.diag([1.0, 1.0, 0.0, 0.0]))
    assert noise(learn_rotation([one]), one) <= noise(np.eye(4), one) * 1.02


def test_tensors_that_share_a_basis_share_the_rotation() -> None:
    first, second = (places(peaked(8000, 6, seed)) for seed in (2, 3))
    rotation = learn_rotation([first, second])
    assert all(noise(rotation, one) < 0.9 * noise(np.eye(6), one) for one in (first, second))


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 9), st.integers(0, 2**32 - 1), st.sampled_from([1e-3, 1.0, 1e3]))
def test_it_is_a_rotation_at_any_scale(channels: int, seed: int, scale: float) -> None:
    rotation = learn_rotation([places(scale * peaked(200, channels, seed))])
    assert np.abs(rotation @ rotation.T - np.eye(channels)).max() < 1e-12


def test_few_places_of_many_channels_are_not_fitted() -> None:
    """Nothing can be gained on normal values, however much better a rotation looks on the few that it is
    learned from.
    """
    one = places(torch.randn(120, 48, generator=torch.Generator().manual_seed(4)))
    unseen = replace(one, judged=torch.randn(4000, 48, generator=torch.Generator().manual_seed(5)))
    assert noise(learn_rotation([one]), unseen) <= 1.05 * noise(np.eye(48), unseen)


@pytest.mark.parametrize("size", [0.0, 1e-60, 1e60])
def test_what_the_outputs_see_may_be_of_any_size(size: float) -> None:
    one = places(peaked(400, 4, seed=6), fisher=size * np.eye(4))
    rotation = learn_rotation([one])
    expected = learn_rotation([replace(one, fisher=np.eye(4))]) if size else np.eye(4)
    np.testing.assert_allclose(rotation, expected, atol=1e-3)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_tensor_that_does_not_vary_gives_a_rotation(value: float) -> None:
    rotation = learn_rotation([places(torch.full((64, 4), value))])
    assert np.abs(rotation @ rotation.T - np.eye(4)).max() < 1e-12
