from __future__ import annotations

import numpy as np
import pytest

from mixport.quantize.channels.one_range import choose_affine
from mixport.quantize.scales.ranges import ScaleRule

_RULE = ScaleRule()


def uneven(*, rows: int = 512, channels: int = 16) -> np.ndarray:
    """Tokens whose channels differ thirtyfold in width and lie at different places."""
    rng = np.random.default_rng(2)
    return (
        rng.normal(size=(rows, channels)) * np.geomspace(0.1, 3.0, channels) + rng.normal(size=channels) * 4
    ).astype(np.float32)


def weights(channels: int = 16) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(24, channels)).astype(np.float32)


def test_uneven_channels_gain_much_at_four_bits() -> None:
    chosen = choose_affine(uneven(), weights(), activation_bits=4, weight_bits=8, rule=_RULE)
    assert chosen.after < 0.25 * chosen.before
    assert (chosen.ratio > 0).all()


def test_the_ratio_grows_with_the_width_of_the_channel_and_the_shift_is_its_middle() -> None:
    tokens = uneven()
    # Small weights where the channel is wide: the layer sees them alike, so the activation alone decides.
    chosen = choose_affine(
        tokens,
        weights() / np.geomspace(0.1, 3.0, 16).astype(np.float32),
        activation_bits=3,
        weight_bits=8,
        rule=_RULE,
    )
    assert chosen.exponent >= 0.75
    assert np.corrcoef(np.log(chosen.ratio), np.arange(16))[0, 1] > 0.95
    assert np.allclose(chosen.shift, np.median(tokens, axis=0), atol=2.0)


def test_low_bit_weights_hold_the_ratio_back() -> None:
    """The channel's width is already in the weights: ratios of two would make them worse, the activation has
    bits to spare.
    """
    tokens, layer = uneven(), weights()
    high = choose_affine(tokens, layer, activation_bits=8, weight_bits=2, rule=_RULE)
    low = choose_affine(tokens, layer, activation_bits=2, weight_bits=8, rule=_RULE)
    assert high.exponent < low.exponent


@pytest.mark.parametrize("value", [0.0, 2.5])
def test_constant_channels_take_a_bounded_ratio(value: float) -> None:
    tokens = uneven()
    tokens[:, 3] = value
    chosen = choose_affine(tokens, weights(), activation_bits=4, weight_bits=4, rule=_RULE)
    assert np.isfinite(chosen.ratio).all()
    assert chosen.ratio.min() >= 1 / 64
    assert chosen.shift[3] == value


def test_a_tensor_that_is_constant_everywhere_is_only_shifted() -> None:
    chosen = choose_affine(
        np.full((10, 4), 3.0, np.float32), weights(4), activation_bits=4, weight_bits=4, rule=_RULE
    )
    assert np.array_equal(chosen.ratio, np.ones(4))
    assert np.array_equal(chosen.shift, np.full(4, 3.0))
