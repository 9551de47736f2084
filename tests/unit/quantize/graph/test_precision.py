"""Layers in half precision are refused by name; what else is in half precision passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from mixport.model.programs.fx_graph import aten
from mixport.quantize.graph.precision import check_precision
from mixport.records.errors import UnsupportedModelError
from tests.unit.quantize.conftest import Capture, operators

LAYERS = {
    "conv1d": aten.conv1d.default,
    "conv2d": aten.conv2d.default,
    "conv2d.padding": aten.conv2d.padding,
    "convolution": aten.convolution.default,
    "linear": aten.linear.default,
    "matmul": aten.matmul.default,
    "bmm": aten.bmm.default,
    "mm": aten.mm.default,
    "addmm": aten.addmm.default,
    "scaled_dot_product_attention": aten.scaled_dot_product_attention.default,
}


def calling(target: Any, dtype: torch.dtype, *, module: str = "") -> fx.GraphModule:
    """A graph of one call that gives this type, as an exported program notes it."""
    graph = fx.Graph()
    node = graph.call_function(target, (graph.placeholder("x"),))
    node.meta["val"] = torch.empty(1, dtype=dtype)
    if module:
        node.meta["nn_module_stack"] = {"": ("", object), "L": (module, nn.Linear)}
    graph.output(node)
    return fx.GraphModule(nn.Module(), graph)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_every_layer_and_product_is_refused_in_both_halves(name: str, half: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        check_precision(calling(LAYERS[name], getattr(torch, half), module="blocks.0.fc"))
    assert f"blocks.0.fc: aten.{name} computes in {half}, allowed float32" in str(caught.value)
    assert caught.value.hint.startswith("leave torch.autocast, .half() and .bfloat16() out of forward")


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int8])
def test_other_types_pass_here(name: str, dtype: torch.dtype) -> None:
    check_precision(calling(LAYERS[name], dtype))


def test_functions_between_layers_may_be_in_half_precision() -> None:
    check_precision(calling(aten.relu.default, torch.float16))


def test_a_layer_of_no_module_has_its_node_s_name() -> None:
    with pytest.raises(UnsupportedModelError, match=r"^linear_default: aten\.linear computes in float16"):
        check_precision(calling(aten.linear.default, torch.float16))


def test_what_no_type_is_known_of_passes() -> None:
    graph = calling(aten.linear.default, torch.float16)
    for node in graph.graph.nodes:
        node.meta.pop("val", None)
    check_precision(graph)


class Net(nn.Module):
    def __init__(self, body: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.fc, self.body = nn.Conv2d(3, 4, 3), nn.Linear(4, 4), body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def autocast(net: Net, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return net.conv(x).float().mean((2, 3))


def cast_by_hand(net: Net, x: Tensor) -> Tensor:
    y = net.conv(x).mean((2, 3))
    return F.linear(y.half(), net.fc.weight.half()).float()


def product(net: Net, x: Tensor) -> Tensor:
    y = net.conv(x).bfloat16()
    return (y @ y.transpose(-2, -1)).float()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (autocast, r"aten\.conv2d computes in bfloat16"),
        (cast_by_hand, r"^linear: aten\.linear computes in float16"),
        (product, r"^matmul: aten\.matmul computes in bfloat16"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_models_that_compute_so_are_not_captured(
    captured: Capture, body: Callable[[Net, Tensor], Tensor], message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        captured(Net(body))


def test_a_model_in_float32_is_captured_with_its_layers(captured: Capture) -> None:
    graph = captured(Net(lambda net, x: net.fc(net.conv(x).mean((2, 3))))).graph
    assert (operators(graph)["conv2d"], operators(graph)["linear"]) == (1, 1)
