"""Weights as learning will start from them, while widths are still to be chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx

from mixport.artifacts import CalibrationSet
from mixport.progress import SilentProgress
from mixport.quantize import quantize
from mixport.quantize.nearest import float_weights
from mixport.quantize.plan import make_plan
from mixport.quantize.reconstruction.expected_codes import expected_codes
from mixport.quantize.sensitivity import RoundWeight, layer_losses, nearest
from mixport.quantize.widths import scheme_widths
from mixport.quantspec import Scheme
from mixport.reconstruction_preset import PRESETS, ReconstructionOptions
from mixport.targets import load_target
from tests.reconstruction import float_model, stack, windows, without_biases
from tests.unit.quantize.conftest import Capture

SCHEME = Scheme(weight_bits=2, activation_bits=8)


def images(count: int = 8) -> Tensor:
    """Smooth and positive: what layers read has a mean, and moves together."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand((count, 3, 4, 4), generator=generator) + 0.5
    return torch.nn.functional.interpolate(small, size=(16, 16), mode="bilinear")


def layers_of(graph: fx.GraphModule) -> list[fx.Node]:
    return list(scheme_widths(graph, make_plan(graph, SCHEME, stream_bits=16), SCHEME))


def rounding(graph: fx.GraphModule, x: Tensor) -> RoundWeight:
    return expected_codes(graph, layers_of(graph), iter(x.split(4)), images=len(x), progress=SilentProgress())


class Reads(fx.Interpreter):
    """Keeps what layers read."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.found: dict[fx.Node, tuple[Any, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "call_function":
            self.found[n] = self.fetch_args_kwargs_from_env(n)[0]
        return super().run_node(n)


def test_two_bits_cost_less_than_rounded_to_nearest_and_eight_are_nearest(captured: Capture) -> None:
    graph, x = captured(stack(), size=16).graph, images()
    ours = rounding(graph, x)
    layers = layers_of(graph)
    weights = {layer: float_weights(graph, layer)[0] for layer in layers}
    changes = {layer: [made(layer, weights[layer], 2) for made in (ours, nearest)] for layer in layers}
    losses = layer_losses(graph, changes, iter([x]), images=len(x), progress=SilentProgress())
    assert all(expected < plain for expected, plain in losses.values())
    for layer in layers:
        wide = ours(layer, weights[layer], 8)
        assert wide.bias is None
        assert torch.equal(wide.weight, nearest(layer, weights[layer], 8).weight)


@pytest.mark.parametrize("make", [stack, windows, without_biases])
def test_the_bias_takes_up_the_mean(make: Any, captured: Capture) -> None:
    graph, x = captured(make(), size=16).graph, images()
    ours, reads = rounding(graph, x), Reads(graph)
    reads.run(x)
    for layer in layers_of(graph):
        made = ours(layer, float_weights(graph, layer)[0], 2)
        inputs, weight, *rest = reads.found[layer]
        assert (made.bias is None) == (not rest or rest[0] is None)
        if made.bias is None:
            continue
        wanted, got = layer.target(inputs, weight, *rest), layer.target(inputs, made.weight, made.bias, *rest[1:])  # type: ignore[operator]
        axes = [axis for axis in range(wanted.dim()) if axis != (1 if wanted.dim() == 4 else wanted.dim() - 1)]
        torch.testing.assert_close(got.mean(axes), wanted.mean(axes), rtol=1e-4, atol=1e-5)


def test_a_layer_that_reads_no_finite_numbers_is_rounded_to_nearest(captured: Capture) -> None:
    graph, x = captured(stack(), size=16).graph, images()
    x[3] = torch.inf
    ours = rounding(graph, x)
    layer = layers_of(graph)[1]
    weight = float_weights(graph, layer)[0]
    made = ours(layer, weight, 2)
    assert made.bias is None
    assert torch.equal(made.weight, nearest(layer, weight, 2).weight)


@pytest.mark.parametrize(("preset", "rounded"), [(None, "to nearest"), ("qdrop", "to nearest"), ("mixport", "by least squares")])
def test_the_search_rounds_as_learning_starts(preset: str | None, rounded: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    calibration = CalibrationSet(images_path=tmp_path / "images.npy", count=8, method="images", recipe_key="", content_sha256="")
    made = quantize(
        float_model(stack()),
        calibration,
        load_target("ort-cpu"),
        scheme=Scheme.parse("auto:0.9"),
        reconstruction=None if preset is None else ReconstructionOptions(preset=PRESETS[preset], iters=1),
        smallest_bytes=500,
        workdir=tmp_path,
    )
    assert made.width_search is not None
    assert made.width_search.rounded == rounded
