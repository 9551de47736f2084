"""Units that end in a layer: their output is widened to the variance of the float one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mixport.quantize.integers.nearest import LayerIntegers
from mixport.quantize.learn.loop.activation_store import ActivationStore, fill
from mixport.quantize.learn.reconstruction.optimise import UnitData
from mixport.quantize.learn.reconstruction.variance import Spread, spread_of, widened
from mixport.quantize.learn.units.execute import Executor
from mixport.quantize.learn.units.units import find_units
from mixport.records.choices.reconstruction_preset import PRESETS
from tests.reconstruction import DEFAULT, changed, learn, seeded, task_of


class Linear(nn.Module):
    """Two units end in a layer (`narrow`, with a bias or without one), others in a Relu or a sum."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.stem, self.wide, self.narrow = (
            nn.Conv2d(3, 8, 3),
            nn.Conv2d(8, 8, 3),
            nn.Conv2d(8, 6, 1, bias=bias),
        )
        self.branch, self.last, self.head = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.narrow(torch.relu(self.wide(torch.relu(self.stem(x)))))
        x = x + self.branch(x)
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


def spread_by_hand(own: Tensor, wanted: Tensor) -> float:
    own, wanted = (one.double() - one.double().mean((0, 2, 3), keepdim=True) for one in (own, wanted))
    return float((wanted.square().sum() / own.square().sum()).sqrt())


@pytest.mark.parametrize("shrink", [0.25, 0.8, 1.0, 1.3])
def test_the_gain_is_the_root_of_the_variances_share(tmp_path: Path, shrink: float) -> None:
    """A unit's float output against targets that vary more or less, about other means: at least 1, at most
    1.5.
    """
    task, images = task_of(seeded(Linear), tmp_path)
    executor = Executor(
        task.graph, task.plan, input_shape=task.input_shape, dynamic_batch=True, device=torch.device("cpu")
    )
    unit = find_units(task.graph, task.plan)[0]
    store = ActivationStore(tmp_path, largest=1 << 30, device=torch.device("cpu"))
    read = fill(12, 4, images, store=store)
    with torch.no_grad():
        own = executor.run(unit, read.at(slice(0, 12)), images=12, quantised=None)
    target = own / shrink + torch.arange(float(own.shape[1])).view(1, -1, 1, 1)
    data = UnitData(
        float_input=read, quantised_input=read, target=fill(12, 5, lambda part: target[part], store=store)
    )

    class Floats:
        """Quantises nothing."""

        def activation(self, site: object, value: Tensor) -> Tensor:
            return value

        def weights(self, layer: object) -> None:
            return None

    found = spread_of(executor, unit, data, Floats(), batch=5, channel_axis=1)
    assert found.gain == pytest.approx(min(max(spread_by_hand(own, target), 1.0), 1.5), rel=1e-6)
    np.testing.assert_allclose(found.mean, own.mean((0, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(found.float_mean, target.mean((0, 2, 3)), atol=1e-5)


@given(st.floats(1.0, 1.5), st.integers(0, 2**32 - 1))
def test_a_widened_layer_gives_the_wanted_mean_and_spread(gain: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(1.0, 1.0, (400, 5))
    old = LayerIntegers(
        scales=rng.uniform(0.1, 1.0, 3).astype(np.float32),
        codes=rng.integers(-8, 8, (3, 5)).astype(np.int8),
        bias=rng.normal(0, 5, 3).astype(np.float32),
    )

    def outputs(one: LayerIntegers) -> np.ndarray:
        assert one.bias is not None
        return x @ (one.codes * one.scales[:, None]).T.astype(np.float64) + one.bias

    wanted = rng.normal(0, 5, 3)
    new = widened(
        old, Spread(mean=torch.as_tensor(outputs(old).mean(0)), float_mean=torch.as_tensor(wanted), gain=gain)
    )
    np.testing.assert_array_equal(new.codes, old.codes)
    np.testing.assert_allclose(outputs(new).mean(0), wanted, atol=1e-4)
    np.testing.assert_allclose(outputs(new).std(0), gain * outputs(old).std(0), rtol=1e-4, atol=1e-6)


def test_without_a_bias_only_scales_move() -> None:
    old = LayerIntegers(scales=np.array([0.5, 2.0], np.float32), codes=np.ones((2, 3), np.int8), bias=None)
    new = widened(old, Spread(mean=torch.zeros(2), float_mean=torch.ones(2), gain=1.25))
    assert new.bias is None and new.scales.tolist() == [0.625, 2.5]


@pytest.mark.parametrize("bias", [True, False])
def test_only_units_that_end_in_a_layer_are_widened_and_say_so(tmp_path: Path, bias: bool) -> None:
    task, images = task_of(seeded(lambda: Linear(bias=bias)), tmp_path)
    kept, plain = (
        learn(task, images, tmp_path, iters=40, preset=changed(DEFAULT, keeps_variance=one, input_drop=0.0))
        for one in (True, False)
    )
    found = [one.where for one in kept.decisions if "widened" in one.what]
    assert found and set(found) <= {"narrow", "wide"}
    assert not any("widened" in one.what for one in plain.decisions)


def test_8_bit_activations_are_hardly_noise(tmp_path: Path) -> None:
    task, images = task_of(seeded(Linear), tmp_path, scheme="w2a8")
    made = learn(task, images, tmp_path, iters=40, preset=changed(DEFAULT, input_drop=0.0))
    assert made.record.units and not any("widened" in one.what for one in made.decisions)


def test_published_recipes_do_not_widen() -> None:
    assert [
        name for name, preset in PRESETS.items() if any(stage.keeps_variance for stage in preset.stages)
    ] == ["mixport"]
