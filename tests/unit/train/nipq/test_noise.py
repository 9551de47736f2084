"""Noise: windows of one row of random numbers, and the distribution of true rounding errors."""

# torch leaves some signatures without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mixport.train.nipq.noise import NoisePool, error_quantiles

ONE = torch.tensor(1.0)
EVEN = (torch.arange(4096) + 0.5) / 4096 - 0.5
"""Quantiles of uniform noise."""


def pool_of(seed: int = 1, *, largest: int = 20_000) -> NoisePool:
    return NoisePool(
        largest=largest, generator=torch.Generator().manual_seed(seed), device=torch.device("cpu")
    )


def share(quantiles: Tensor, error: float) -> float:
    """Of the quantiles, those within the bin that holds an error."""
    low = torch.floor(torch.tensor((error + 0.5) * 256)) / 256 - 0.5
    return float(((quantiles >= low) & (quantiles <= low + 1 / 256)).float().mean())


def with_errors(*errors: float, whole: int = 64) -> Tensor:
    """Values whose rounding to whole numbers adds these errors: whole numbers from 1 less each."""
    return (torch.arange(1.0, whole + 1)[:, None] - torch.tensor(errors)).flatten()


@pytest.mark.parametrize("quantiles", [None, torch.linspace(-0.4, 0.3, 4096)])
def test_windows_have_the_shape_and_the_order_of_the_tensor(quantiles: Tensor | None) -> None:
    pool = pool_of()

    def noise(x: Tensor) -> Tensor:
        return pool.uniform(x) if quantiles is None else pool.drawn(x, quantiles)

    images = torch.empty(10, 20, 10, 10)
    last = images.contiguous(memory_format=torch.channels_last)
    for x in (images, last, torch.empty(7, 3), torch.empty(4, 5, 6), torch.empty(())):
        found = noise(x)
        assert found.shape == x.shape and found.stride() == x.stride() and found.dtype == torch.float32
    assert not torch.equal(noise(images), noise(images)), "each pass has its own window"


def test_the_generator_decides_everything() -> None:
    x = torch.empty(50, 20)
    first, again, other = pool_of(1), pool_of(1), pool_of(2)
    for _ in range(3):
        one = first.uniform(x)
        assert torch.equal(one, again.uniform(x))
        assert not torch.equal(one, other.uniform(x))


@pytest.mark.parametrize("largest", [1, 100, 300_000])
def test_the_largest_tensor_has_a_window_at_every_place(largest: int) -> None:
    pool, x = pool_of(largest=largest), torch.empty(largest)
    for _ in range(200):
        assert pool.uniform(x).shape == x.shape


def test_uniform_noise_is_uniform() -> None:
    pool, x = pool_of(), torch.empty(1000)
    noise = torch.stack([pool.uniform(x) for _ in range(100)])
    assert float(noise.min()) >= -0.5 and float(noise.max()) < 0.5
    # Deviations of a mean and of a variance of 100,000 draws: 0.0009 and 0.0002; four of them.
    assert float(noise.mean()) == pytest.approx(0.0, abs=4e-3)
    assert float(noise.var()) == pytest.approx(1 / 12, abs=1e-3)


def test_drawn_noise_has_the_distribution_of_its_quantiles() -> None:
    pool, x = pool_of(), torch.empty(1000)
    quantiles = torch.cat([torch.full((1024,), -0.3), torch.full((3072,), 0.1)])
    noise = torch.stack([pool.drawn(x, quantiles) for _ in range(100)])
    assert torch.equal(noise.unique(), torch.tensor([-0.3, 0.1]))
    # A deviation of the share of 65,536 + 5,000 numbers, which windows repeat: 0.002.
    assert float((noise == 0.1).float().mean()) == pytest.approx(0.75, abs=0.01)


def test_errors_that_are_alike_give_quantiles_in_their_bin() -> None:
    found = error_quantiles(with_errors(0.2505), low=-ONE, high=65 * ONE, step=ONE)
    assert found.shape == (4096,) and found.dtype == torch.float32
    assert share(found, 0.2505) == 1.0
    # Noise is what rounding adds: added to the values, it rounds them to within a bin.
    assert float((with_errors(0.2505) + found[::64] - torch.arange(1.0, 65)).abs().max()) < 1 / 128


def test_quantiles_are_the_histogram_of_the_errors_in_order() -> None:
    x = with_errors(0.1, 0.1, -0.3, 0.4)
    found = error_quantiles(0.5 * x, low=-ONE, high=40 * ONE, step=0.5 * ONE)
    assert bool((found.diff() >= 0).all())
    # 4,096 quantiles: one at each end of a bin may fall to its neighbour.
    assert [share(found, error) for error in (-0.3, 0.1, 0.4)] == pytest.approx([0.25, 0.5, 0.25], abs=5e-4)


def test_truncated_elements_do_not_count() -> None:
    x = torch.cat([with_errors(0.1), with_errors(-0.2) + 100.0, with_errors(0.4) - 100.0])
    found = error_quantiles(x, low=-ONE, high=70 * ONE, step=ONE)
    assert share(found, 0.1) == 1.0


def test_values_at_the_bounds_do_not_count() -> None:
    x = torch.tensor([0.0] * 50 + [7.0] * 50 + [2.9])
    found = error_quantiles(x, low=0 * ONE, high=7 * ONE, step=ONE)
    assert share(found, 0.1) == 1.0


def test_without_any_error_noise_is_uniform() -> None:
    found = error_quantiles(torch.full((100,), 9.0), low=-ONE, high=ONE, step=ONE)
    torch.testing.assert_close(found, EVEN, rtol=0, atol=1e-6)  # one rounding to float32


def test_each_channel_has_its_own_bounds_and_steps() -> None:
    steps = torch.tensor([0.25, 1.0, 2.0])
    rows = torch.stack([with_errors(error) for error in (0.1, -0.3, 0.4)])
    weight = (rows * steps[:, None]).view(3, 4, 4, 4)
    wide = steps.view(3, 1, 1, 1)
    high = (torch.tensor([70.0, 70.0, 0.1]) * steps).view(3, 1, 1, 1)  # the last channel is truncated
    found = error_quantiles(weight, low=-high, high=high, step=wide)
    assert [share(found, error) for error in (-0.3, 0.1)] == pytest.approx([0.5, 0.5], abs=5e-4)


def test_a_large_weight_is_sampled_with_its_own_channels_bounds() -> None:
    steps = torch.tensor([0.25, 1.0, 2.0, 4.0])
    errors = (0.1, -0.3, 0.4, -0.1)
    rows = torch.stack([with_errors(error, whole=1 << 15) for error in errors])
    weight, wide = rows * steps[:, None], steps[:, None]
    found = error_quantiles(weight, low=-wide, high=40_000 * wide, step=wide)
    # float32 holds whole numbers below 2^15 with an error of 2^-10: a few fall into the next bin.
    near = [float(((found - error).abs() < 1 / 128).float().mean()) for error in errors]
    assert near == pytest.approx([0.25] * 4, abs=5e-3)


def test_channels_last_has_the_same_errors() -> None:
    x = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(3))
    last = x.contiguous(memory_format=torch.channels_last)
    one, other = (error_quantiles(v, low=-2 * ONE, high=2 * ONE, step=0.5 * ONE) for v in (x, last))
    assert torch.equal(one, other)


@pytest.mark.parametrize("levels", [2, 4, 16])
def test_noise_has_the_size_of_the_true_error(levels: int) -> None:
    x = torch.relu(torch.randn(60_000, generator=torch.Generator().manual_seed(3)))
    step = torch.tensor(3.0 / levels)
    found = error_quantiles(x, low=0 * ONE, high=3 * ONE, step=step)
    inside = x[(x > 0) & (x < 3)]
    error = (inside / step).round() - inside / step
    # A bin is 1/256 wide, so that a square moves by less than 1/256 of its root.
    assert float(found.mean()) == pytest.approx(float(error.mean()), abs=1 / 256)
    assert float(found.square().mean()) == pytest.approx(float(error.square().mean()), abs=1 / 256)
