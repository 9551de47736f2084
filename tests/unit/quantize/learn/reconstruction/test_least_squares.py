"""Where learning starts: what layers read, means that stay, and units that begin better than rounded to
nearest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from mixport.quantize.integers.nearest import LayerIntegers, float_weights, read_site
from mixport.quantize.learn.loop.activation_store import ActivationStore, fill
from mixport.quantize.learn.reconstruction import least_squares
from mixport.quantize.learn.reconstruction.layer_moments import InputMoments, inputs_of, layer_moments
from mixport.quantize.learn.reconstruction.least_squares import FloatLayer, choose
from mixport.quantize.learn.reconstruction.optimise import UnitData
from mixport.quantize.learn.reconstruction.unit_learner import UnitLearner
from mixport.quantize.learn.units.execute import Executor
from mixport.quantize.learn.units.units import find_units
from mixport.quantize.sites.site_plan import SitePlan
from mixport.records.choices.reconstruction_preset import PRESETS
from tests import reconstruction as small
from tests.reconstruction import changed, learn, task_of

OURS = PRESETS["mixport"]


def layer_node(module: nn.Module, x: Tensor) -> tuple[fx.GraphModule, fx.Node]:
    """The only layer of an exported module."""
    graph = torch.export.export(module, (x,)).run_decompositions({}).module(check_guards=False)
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            value: Any = graph
            for part in str(node.target).split("."):
                value = getattr(value, part)
            if isinstance(value, Tensor):
                node.meta["shape"] = tuple(value.shape)
    return graph, next(
        node
        for node in graph.graph.nodes
        if node.op == "call_function" and "conv" in str(node.target) + "linear"
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv2d(4, 6, 3, bias=False),
        lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), bias=False),
        lambda: nn.Conv2d(4, 6, 3, dilation=2, padding=2, groups=2, bias=False),
        lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4, bias=False),
        lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2, bias=False),
    ],
)
def test_convolutions_are_sums_of_their_inputs(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    module = make().eval().requires_grad_(False)
    x = torch.randn(3, 4, 9, 8) if isinstance(module, nn.Conv2d) else torch.randn(3, 4, 9)
    _, node = layer_node(module, x)
    rows = inputs_of(node, x)
    groups, _, inputs = rows.shape
    got = rows @ module.weight.reshape(groups, -1, inputs).transpose(1, 2)  # [G, places, O / G]
    wanted = module(x).movedim(1, -1).reshape(rows.shape[1], groups, -1).movedim(1, 0)
    torch.testing.assert_close(got, wanted)


def moments(seed: int = 0) -> InputMoments:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.rand((2, 500, 5), generator=generator, dtype=torch.float64) + 2.0
    mean = rows.mean(1)
    centred = rows - mean[:, None]
    return InputMoments(mean=mean, float_mean=mean + 0.1, covariance=centred.transpose(1, 2) @ centred / 500)


class Untouched:
    """Quantises nothing; an `execute.Quantised`."""

    def activation(self, site: SitePlan, value: Tensor) -> Tensor:
        return value

    def weights(self, layer: fx.Node) -> None:
        return None


def test_moments_are_those_of_all_that_a_layer_reads(tmp_path: Path) -> None:
    task, images = task_of(small.stack(), tmp_path)
    cpu = torch.device("cpu")
    executor = Executor(task.graph, task.plan, input_shape=task.input_shape, dynamic_batch=True, device=cpu)
    first, second, *_ = find_units(task.graph, task.plan)
    pixels = images(slice(0, 12))
    store = ActivationStore(tmp_path, largest=1 << 30, device=cpu)
    floats = fill(
        12, 5, lambda part: executor.run(first, pixels[part], images=part.stop - part.start), store=store
    )
    shifted = fill(12, 5, lambda part: floats.at(part) + 1.0, store=store)
    data = UnitData(float_input=floats, quantised_input=shifted, target=floats)
    (layer,) = second.layers
    seen = layer_moments(executor, second, data, layer, Untouched(), batch=5)
    # The unit is convolution and Relu: what the convolution reads is what enters.
    rows = inputs_of(layer, shifted.at(slice(0, 12)))[0].double()
    assert rows.shape == (12 * 144, 72)
    torch.testing.assert_close(seen.mean[0], rows.mean(0))
    torch.testing.assert_close(seen.float_mean[0], rows.mean(0) - 1.0)
    torch.testing.assert_close(seen.covariance[0], torch.cov(rows.T, correction=0))


@pytest.mark.parametrize("scheme", ["w2a4", "w2a8"])
def test_what_biases_move_by_does_not_depend_on_the_width_that_they_read(scheme: str, tmp_path: Path) -> None:
    task, _ = task_of(small.stack(), tmp_path, scheme=scheme)
    executor = Executor(
        task.graph, task.plan, input_shape=task.input_shape, dynamic_batch=True, device=torch.device("cpu")
    )
    learner = UnitLearner(
        task=task, executor=executor, preset=OURS, stage=OURS.stages[0], iters=1, seed=0, batch=4
    )
    (layer,) = find_units(task.graph, task.plan)[1].layers
    start = learner.start(layer, task.integers[layer], task.params)
    site = read_site(task.plan, layer)
    whole = task.params[site.name].scale * (2**site.bits - 1)
    norm = torch.as_tensor(float_weights(task.graph, layer)[0]).reshape(len(start.scales), -1).norm(dim=1)
    torch.testing.assert_close(start.bias_unit, norm * whole / 15)


@pytest.mark.parametrize("biased", [True, False])
def test_the_mean_of_what_a_layer_gives_stays(biased: bool) -> None:
    seen = moments()
    weight = torch.randn((6, 5), generator=torch.Generator().manual_seed(1))
    bias = np.linspace(-1, 1, 6, dtype=np.float32) if biased else None
    nearest = LayerIntegers(scales=np.full(6, 0.7, np.float32), codes=np.zeros((6, 5), np.int8), bias=bias)
    node = fx.Graph().placeholder("layer")
    made = choose(FloatLayer(node=node, weight=weight, bits=2, x_scale=0.1), nearest, seen)
    quantised = torch.as_tensor(made.codes * made.scales[:, None]).double().reshape(2, 3, 5)
    wanted = (weight.double().reshape(2, 3, 5) @ seen.float_mean[..., None]).flatten()
    got = (quantised @ seen.mean[..., None]).flatten()
    if biased:
        assert bias is not None
        assert made.bias is not None
        np.testing.assert_allclose(
            got.numpy() + made.bias, wanted.numpy() + bias, atol=1e-5
        )  # biases are float32
    else:
        assert made.bias is None
        with_bias = replace(nearest, bias=np.zeros(6, np.float32))
        around = choose(FloatLayer(node=node, weight=weight, bits=2, x_scale=0.1), with_bias, seen)
        away = (
            torch.as_tensor(around.codes * around.scales[:, None]).double().reshape(2, 3, 5)
            @ seen.mean[..., None]
        )
        # Without a bias the codes themselves hold the mean, which is several times the spread here.
        assert float((got - wanted).square().sum()) < float((away.flatten() - wanted).square().sum())


@pytest.mark.parametrize("name", ["stack", "without_biases", "windows", "class_token", "mlps", "dead"])
def test_units_start_no_worse_than_rounded_to_nearest(name: str, tmp_path: Path) -> None:
    task, images = task_of(getattr(small, name)(), tmp_path)
    # A rate of nothing: what comes out is where learning started, or the nearest codes.
    still = changed(
        OURS,
        rounding_lr=1e-30,
        scale_lr=0.0,
        step_lr=0.0,
        bias_lr=0.0,
        damping=0.0,
        input_drop=0.0,
        inner_drop=0.0,
    )
    made = learn(task, images, tmp_path, iters=1, preset=still)
    assert made.record.units
    for unit in made.record.units:
        assert unit.error_before is not None
        assert unit.error_after is not None
        assert unit.error_after <= unit.error_before
    if name == "stack":
        assert all(unit.error_after < unit.error_before for unit in made.record.units)  # type: ignore[operator]


def test_a_unit_that_is_not_learned_keeps_its_start(tmp_path: Path) -> None:
    task, images = task_of(small.stack(), tmp_path)
    made = learn(task, images, tmp_path, preset=changed(OURS, rounding_lr=float("inf")))
    assert {(one.where, one.what) for one in made.decisions} == {
        (name, "left at codes of least squared error") for name in ("second", "third")
    }
    assert [unit.layers for unit in made.record.units] == [("second",), ("third",)]
    assert all(unit.error_after < unit.error_before for unit in made.record.units)  # type: ignore[operator]


def test_a_start_that_is_worse_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, images = task_of(small.stack(), tmp_path)
    monkeypatch.setattr(
        least_squares,
        "least_squares_codes",
        lambda weight, matrix, scales, **_: (torch.zeros_like(weight), scales),
    )
    made = learn(task, images, tmp_path, preset=changed(OURS, rounding_lr=float("inf")))
    assert {one.what for one in made.decisions} == {"left rounded to nearest"}


def test_moments_that_are_no_number_choose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, images = task_of(small.stack(), tmp_path)
    real = least_squares.layer_moments

    def broken(*args: Any, **kwargs: Any) -> InputMoments:
        seen = real(*args, **kwargs)
        return InputMoments(
            mean=seen.mean, float_mean=seen.float_mean, covariance=seen.covariance * float("nan")
        )

    monkeypatch.setattr(least_squares, "layer_moments", broken)
    made = learn(task, images, tmp_path, preset=changed(OURS, rounding_lr=float("inf")))
    assert all(unit.error_after == unit.error_before for unit in made.record.units)


def test_the_same_start_every_time(tmp_path: Path) -> None:
    task, images = task_of(small.stack(), tmp_path)
    first, second = (learn(task, images, tmp_path, iters=4, preset=OURS) for _ in range(2))
    for layer, integers in first.integers.items():
        assert np.array_equal(integers.codes, second.integers[layer].codes)
        assert np.array_equal(integers.scales, second.integers[layer].scales)
