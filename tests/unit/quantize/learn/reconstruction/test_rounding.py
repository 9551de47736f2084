"""What is learned of the weights: where it starts, what it may become."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from mixport.quantize.learn.reconstruction.rounding import LayerStart, Rounding, beta_at
from mixport.records.choices.reconstruction_preset import Method


def start(*shape: int, bits: int = 3, scale: float = 0.2, seed: int = 0) -> LayerStart:
    generator = torch.Generator().manual_seed(seed)
    channels = shape[0]
    return LayerStart(
        weight=torch.randn(shape, generator=generator) * 0.4,
        bias=torch.zeros(channels),
        scales=torch.full((channels,), scale) * (1 + torch.arange(channels)),
        least=torch.full((channels,), 1e-6),
        bias_unit=torch.full((channels,), 0.5),
        bits=bits,
    )


def test_sigmoid_starts_at_the_fraction_of_the_weight() -> None:
    layer = start(4, 3, 3, 3)
    rounding = Rounding([layer], method="sigmoid")
    ratio = (layer.weight / layer.scales.view(-1, 1, 1, 1)).flatten()
    torch.testing.assert_close(rounding.soft(), ratio - ratio.floor(), rtol=0, atol=1e-5)
    weight, expected = (
        rounding.weights()[0].weight,
        ratio.clamp(-4, 3).view(4, 3, 3, 3) * layer.scales.view(-1, 1, 1, 1),
    )
    torch.testing.assert_close(weight, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["sigmoid", "free"])
def test_hard_codes_start_next_to_the_nearest(method: Method) -> None:
    layer = start(4, 20)
    rounding = Rounding([layer], method=method)
    (codes,) = rounding.split(rounding.codes(hard=True))
    ratio = layer.weight / layer.scales.view(-1, 1)
    assert torch.equal(codes, ratio.round().clamp(-4, 3))


@pytest.mark.parametrize("method", ["sigmoid", "free"])
def test_inputs_that_no_channel_reads_keep_codes_of_0(method: Method) -> None:
    layer = start(4, 3, 2, 2)
    layer.weight[:, 1, 0] = 0.0
    layer.weight[2:, 2] = 0.0  # two of four channels: zeros like any other weight
    rounding = Rounding([layer], method=method)
    with torch.no_grad():
        rounding.codes_at.add_(3.0)
    for hard in (True, False):
        (codes,) = rounding.split(rounding.codes(hard=hard))
        assert not codes[:, 1, 0].any()
        assert bool((codes[2:, 2] > 0.5).all())


@pytest.mark.parametrize("method", ["sigmoid", "free"])
def test_hard_codes_stay_integers_in_range_wherever_learning_goes(method: Method) -> None:
    layers = [
        start(4, 20, bits=2),
        start(3, 2, 3, 3, bits=8, scale=0.004, seed=1),
        start(2, 5, bits=4, seed=2),
    ]
    rounding = Rounding(layers, method=method)
    with torch.no_grad():
        rounding.codes_at.add_(
            torch.randn(rounding.codes_at.shape, generator=torch.Generator().manual_seed(5)) * 200
        )
    limits = [(-2, 1), (-127, 127), (-8, 7)]
    for codes, layer, (low, high) in zip(
        rounding.split(rounding.codes(hard=True)), layers, limits, strict=True
    ):
        assert codes.shape == layer.weight.shape
        assert torch.equal(codes, codes.round())
        assert float(codes.min()) >= low
        assert float(codes.max()) <= high


def test_free_codes_are_straight_through_inside_and_round_in_the_forward_run() -> None:
    layer = start(2, 30, bits=3)
    rounding = Rounding([layer], method="free")
    with torch.no_grad():
        rounding.codes_at[0], rounding.codes_at[1], rounding.codes_at[2] = 1.3, 9.0, -9.0
    codes = rounding.codes(hard=False)
    assert codes[:3].tolist() == [1.0, 3.0, -4.0]
    codes.sum().backward()
    assert rounding.codes_at.grad[:3].tolist() == [1.0, 0.0, 0.0]


def test_free_codes_are_held_where_a_gradient_still_reaches_them() -> None:
    rounding = Rounding([start(2, 30, bits=3)], method="free")
    with torch.no_grad():
        rounding.codes_at[:4] = torch.tensor([9.0, -9.0, 3.4, 1.3])
    rounding.hold()
    assert rounding.codes_at[:4].tolist() == [3.5, -4.5, pytest.approx(3.4), pytest.approx(1.3)]
    rounding.codes(hard=False)[:2].sum().backward()
    assert (rounding.codes_at.grad[:2] > 0).all(), "what stands at the limit can come back"
    logits = Rounding([start(2, 30, bits=3)], method="sigmoid")
    before = logits.codes_at.detach().clone()
    logits.hold()
    assert torch.equal(logits.codes_at, before)


def test_what_is_unsettled_is_measured_from_codes_that_exist() -> None:
    rounding = Rounding([start(1, 4, bits=3)], method="free")
    with torch.no_grad():
        rounding.codes_at.copy_(
            torch.tensor([3.5, 9.0, -4.5, 1.25])
        )  # 3.5 would round to 4, which 3 bits do not have
    assert float(rounding.unsettled().detach()) == pytest.approx((3 * 0.5**2 + 0.25**2) / 4)
    rounding.unsettled().backward()
    assert float(rounding.codes_at.grad[0]) > 0, "towards the last code"


@pytest.mark.parametrize("absolute", [False, True])
def test_an_adam_step_moves_scales_relatively_or_absolutely(absolute: bool) -> None:
    layer = start(3, 5)
    rounding = Rounding([layer], method="sigmoid", absolute=absolute)
    assert torch.equal(rounding.scales(0), layer.scales)
    optimizer = torch.optim.Adam(rounding.scales_at, lr=1e-3)
    rounding.scales(0).sum().backward()
    optimizer.step()
    moved = layer.scales - rounding.scales(0).detach()
    expected = torch.full_like(moved, 1e-3) if absolute else 1e-3 * layer.scales
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("absolute", [False, True])
def test_scales_never_reach_zero_and_say_so(absolute: bool) -> None:
    layer = start(3, 5)
    rounding = Rounding([layer], method="sigmoid", absolute=absolute)
    with torch.no_grad():
        rounding.scales_at[0][1] = -5.0
    torch.testing.assert_close(rounding.scales(0)[1], layer.scales[1] / 16)
    assert rounding.at_floor(0) == 1


def test_what_is_undecided_is_counted() -> None:
    rounding = Rounding([start(2, 8)], method="sigmoid")
    with torch.no_grad():
        rounding.codes_at.fill_(50.0)
        rounding.codes_at[:3] = 0.0  # h = 1/2
        rounding.codes_at[3] = -50.0
    assert float(rounding.undecided(2.0).detach()) == pytest.approx(3.0, abs=1e-5)
    assert float(rounding.undecided(20.0).detach()) == pytest.approx(3.0, abs=1e-5)


def test_beta_falls_in_a_line_behind_the_warm_up() -> None:
    found = [beta_at(step, 11, warmup=0.2) for step in range(11)]
    assert found[:3] == [None, None, None]
    assert found[3] == 20.0
    assert found[10] == 2.0
    numbers = [value for value in found if value is not None]
    steps = [a - b for a, b in itertools.pairwise(numbers)]
    assert steps == pytest.approx([18 / 7] * 7)
    assert beta_at(0, 1, warmup=0.0) == 20.0


def test_biases_follow_the_weights_where_the_mean_input_is_known() -> None:
    layer = replace(
        start(4, 3, 3, 3), mean=torch.rand((1, 27), generator=torch.Generator().manual_seed(3)) + 1.0
    )
    grouped = replace(
        start(4, 2, 3, bits=2, seed=1), mean=torch.rand((2, 6), generator=torch.Generator().manual_seed(4))
    )
    rounding = Rounding([layer, grouped], method="free")

    def means() -> list[torch.Tensor]:
        found = []
        for values, one in zip(rounding.weights(), rounding.layers, strict=True):
            assert one.mean is not None
            assert values.bias is not None
            by_group = values.weight.reshape(len(one.mean), -1, one.mean.shape[1])
            found.append((by_group @ one.mean[..., None]).flatten() + values.bias)
        return found

    before = [mean.detach() for mean in means()]
    with torch.no_grad():
        rounding.codes_at.add_(
            torch.randn(rounding.codes_at.shape, generator=torch.Generator().manual_seed(5))
        )
        for scales in rounding.scales_at:
            scales.mul_(1.3)
    for index, (mean, first) in enumerate(zip(means(), before, strict=True)):
        torch.testing.assert_close(mean, first, rtol=0, atol=1e-5)
        bias = rounding.bias(index)
        assert bias is not None
        torch.testing.assert_close(bias, rounding.weights()[index].bias)
    sum(mean.sum() for mean in means()).backward()  # type: ignore[union-attr]
    assert rounding.codes_at.grad is not None
    assert float(rounding.codes_at.grad.abs().max()) < 1e-5
