"""What insertion makes of whole models: pairs and requantisation hold for every layer of the program."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mixport.arithmetic.neighbour_pairs import forms_pairs, pair_violations
from mixport.arithmetic.requantisation import Requantisation, wrong_thresholds
from mixport.arithmetic.torch_ops import OPS
from mixport.model.programs.fx_graph import argument, aten, constant, live_nodes, tensor_arg
from mixport.quantize.algorithms.activations import choose_params
from mixport.quantize.emit.insert import code_params, insert_activations, insert_weights
from mixport.quantize.graph.capture import capture
from mixport.quantize.integers.nearest import nearest_integers
from mixport.quantize.prepare import scale_rule
from mixport.quantize.scales.histograms import collect
from mixport.quantize.sites.planner import make_plan
from mixport.quantize.sites.widths import scheme_widths
from mixport.records.choices.scheme import Scheme
from mixport.records.targets import load_target
from tests.models import tiny


@pytest.mark.parametrize("bounded", [True, False])
def test_every_layer_of_a_program_keeps_the_bounds(bounded: bool) -> None:
    target = load_target("ort-cpu")
    if not bounded:
        target = target.model_copy(
            update={"accumulator": target.accumulator.model_copy(update={"pair_limit": None})}
        )
    captured = capture(tiny(), input_shape=(1, 3, 32, 32), dynamic_batch=True)
    graph = captured.graph
    plan = make_plan(graph, Scheme(weight_bits=8, activation_bits=8), stream_bits=16)
    widths = scheme_widths(graph, plan, Scheme(weight_bits=8, activation_bits=8))
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    names = {site.tensor: site.name for site in reversed(plan.sites)}
    observers = [found for _, found in collect(graph, names, iter([images]))][-1]
    per_tensor = {node: observer.result() for node, observer in observers.items()}
    params = choose_params(
        plan, {site.name: per_tensor[site.tensor] for site in plan.sites}, scale_rule(target)
    )
    integers, changed = nearest_integers(
        graph, plan, widths, params, pair_limit=target.accumulator.pair_limit
    )
    insert_activations(graph, plan, params, target)
    _, moved = insert_weights(graph, widths, integers, target)
    decisions = [*changed, *moved]
    broken = requantised = 0
    for node in graph.graph.nodes:
        if node.target not in (aten.conv2d.default, aten.linear.default):
            continue
        x = code_params(tensor_arg(node, 0))
        codes, w_scale = (constant(graph, operand) for operand in tensor_arg(node, 1).args[:2])
        assert x is not None and codes is not None and w_scale is not None
        weights, scales = codes.numpy(), w_scale.numpy()
        if forms_pairs(weights.shape, groups=argument(node, 6, "groups", 1) if weights.ndim == 4 else 1):
            broken += int(pair_violations(weights, largest_code=max(x.qmax, x.zero_point), limit=32767).sum())
        outputs = [user for user in node.users if user.target is OPS.quantize_dequantize.default]
        if not outputs:
            continue
        y = code_params(outputs[0])
        bias = constant(graph, tensor_arg(tensor_arg(node, 2), 0))
        assert y is not None and bias is not None
        rows = weights.reshape(len(weights), -1).astype(np.int64)
        reach = np.abs(rows).sum(1) * 255
        offset = bias.numpy().astype(np.int64)
        low = (
            np.minimum(rows, 0).sum(1) * (x.qmax - x.zero_point)
            + np.maximum(rows, 0).sum(1) * (x.qmin - x.zero_point)
            + offset
        )
        high = (
            np.maximum(rows, 0).sum(1) * (x.qmax - x.zero_point)
            + np.minimum(rows, 0).sum(1) * (x.qmin - x.zero_point)
            + offset
        )
        assert (high - low <= reach).all()
        rule = Requantisation(
            x_scale=x.scale,
            w_scale=scales,
            y_scale=y.scale,
            zero_point=y.zero_point,
            qmin=y.qmin,
            qmax=y.qmax,
        )
        assert not wrong_thresholds(rule, low=low, high=high).any()
        requantised += 1
    assert requantised == 5
    assert (broken == 0) is bounded
    assert any("neighbouring weights" in d.what for d in decisions) is bounded
    assert any("units in the last place" in d.what for d in decisions)


class Chain(nn.Module):
    """Residual blocks: the number of ways from the first to the last doubles with each."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


def test_what_leads_to_the_output_is_found_in_one_pass() -> None:
    graph = torch.fx.symbolic_trace(Chain(64))
    first = next(node for node in graph.graph.nodes if node.op == "call_module")
    with graph.graph.inserting_after(first):
        dead = graph.graph.call_function(torch.relu, (first,))
    assert live_nodes(graph) == set(graph.graph.nodes) - {dead}
