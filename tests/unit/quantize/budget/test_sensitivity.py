"""Losses of single layers: the same as running the whole graph with that layer's weight replaced."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from mixport.quantize.budget.sensitivity import (
    RoundedWeights,
    divergence,
    joint_losses,
    layer_losses,
    round_to_nearest,
)
from mixport.quantize.sites.planner import make_plan
from mixport.quantize.sites.widths import scheme_widths
from mixport.records.choices.scheme import Scheme
from mixport.records.progress import SilentProgress
from tests.models import tiny
from tests.unit.quantize.conftest import Capture

BITS = (2, 8)


def test_a_layer_alone_costs_what_the_whole_model_says(captured: Capture) -> None:
    module = tiny()
    graph = captured(module, size=32).graph
    scheme = Scheme(weight_bits=2, activation_bits=8)
    widths = scheme_widths(graph, make_plan(graph, scheme, stream_bits=16), scheme)
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    rounded = RoundedWeights(graph, round_to_nearest)
    changes = {node: [rounded.of(node, bits) for bits in BITS] for node in widths}
    losses = layer_losses(graph, changes, iter(images.split(4)), images=6, progress=SilentProgress())
    assert list(losses) == list(widths)
    by_name = {widths[node].name: node for node in widths}
    for name in (
        "gate.reduce",
        "head",
    ):  # layers without a folded batch norm: the module can be changed by hand
        for i in range(len(BITS)):
            other = copy.deepcopy(module)
            other.get_submodule(name).weight.data.copy_(changes[by_name[name]][i])
            with torch.no_grad():
                expected = divergence(module(images), other(images)) / 6
            assert losses[by_name[name]][i] == pytest.approx(expected, rel=1e-3, abs=1e-9)
    assert all(narrow > wide for narrow, wide in losses.values())
    alone = joint_losses(graph, [{}, {by_name["head"]: changes[by_name["head"]][0]}], iter(images.split(4)))
    assert alone[0] == 0.0
    assert alone[1] == pytest.approx(losses[by_name["head"]][0], rel=1e-6)


def test_how_a_weight_is_rounded_can_be_replaced(captured: Capture) -> None:
    graph = captured(tiny(), size=32).graph
    scheme = Scheme(weight_bits=2, activation_bits=8)
    node = next(iter(scheme_widths(graph, make_plan(graph, scheme, stream_bits=16), scheme)))
    calls: list[int] = []

    def zero(layer: torch.fx.Node, weight: np.ndarray, bits: int) -> np.ndarray:
        calls.append(bits)
        return np.zeros_like(weight)

    rounded = RoundedWeights(graph, zero)
    assert not rounded.of(node, 4).any()
    rounded.of(node, 4)
    assert calls == [4]


def test_divergence_is_the_sum_over_images_of_the_kl_of_softmaxes() -> None:
    a, b = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    p = 1 / (1 + np.exp(1))
    assert divergence(a, b) == pytest.approx(p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p)))
    assert divergence(a, a) == 0.0


def test_a_model_with_one_output_has_the_relative_squared_error() -> None:
    a = torch.tensor([[1.0], [2.0]])
    assert divergence(a, a * 1.1) == pytest.approx(2 * 0.01, rel=1e-4)


def test_an_output_that_is_not_finite_is_worse_than_any_other() -> None:
    a = torch.zeros(2, 3)
    assert divergence(a, a + torch.tensor([0.0, float("nan"), 0.0])) == float("inf")
