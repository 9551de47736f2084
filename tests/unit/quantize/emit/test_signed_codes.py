"""int8 in the place of uint8: every number smaller by 128, every value the same."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from mixport.arithmetic.quant_params import QuantParams
from mixport.arithmetic.torch_ops import OPS
from mixport.quantize.emit.signed_codes import as_int8, signed, to_int8
from mixport.records.quantized_model import ActivationSite

IMAGE = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)) * 4


def program(target: object, *arguments: object, **constants: torch.Tensor) -> fx.GraphModule:
    """One call on the codes of the image; constants stand behind its first argument."""
    root = torch.nn.Module()
    graph = fx.Graph()
    x = graph.placeholder("x")
    tensors = []
    for name, value in constants.items():
        root.register_buffer(name, value)
        tensors.append(graph.get_attr(name))
    graph.output(graph.call_function(target, (x, *tensors, *arguments)))
    return fx.GraphModule(root, graph)


def call_of(graph: fx.GraphModule) -> tuple[object, ...]:
    """What the one call is given behind its tensors."""
    (node,) = [node for node in graph.graph.nodes if node.op == "call_function"]
    return tuple(one for one in node.args if not isinstance(one, fx.Node))


TABLE = torch.arange(255, -1, -1).to(torch.uint8)
GAMMA = torch.linspace(-1, 1, 8)
CASES = {
    "codes": (
        program(OPS.quantize_dequantize.default, "stem", 0.1, 30, 0, 200, "uint8"),
        ("stem", 0.1, -98, -128, 72, "int8"),
    ),
    "numerators": (
        program(OPS.coded_numerators.default, "attn", 0.5, 100, 0.125, "uint8"),
        ("attn", 0.5, -28, 0.125, "int8"),
    ),
    "normalisation": (
        program(OPS.layer_norm.default, "norm", 1e-5, 0.1, 128, "uint8", gamma=GAMMA, beta=torch.zeros(8)),
        ("norm", 1e-5, 0.1, 0, "int8"),
    ),
}


@pytest.mark.parametrize(("graph", "expected"), CASES.values(), ids=CASES.keys())
def test_codes_bounds_and_zero_points_move_by_128(
    graph: fx.GraphModule, expected: tuple[object, ...]
) -> None:
    before = graph(IMAGE)
    to_int8(graph)
    graph.recompile()
    assert call_of(graph) == expected
    assert torch.equal(graph(IMAGE), before)


def test_a_table_counts_from_zero_whatever_its_storage() -> None:
    numbers = ("act", 0.5, 100, 0.25, 9, 0, 255, "table")
    graph = program(OPS.lookup.default, *numbers, "uint8", table=TABLE)
    codes = (torch.arange(256.0) - 100) * 0.5
    before = graph(codes)
    to_int8(graph)
    graph.recompile()
    assert call_of(graph) == (*numbers, "int8")
    assert torch.equal(graph(codes), before)


@pytest.mark.parametrize(
    "graph",
    [
        program(OPS.quantize_dequantize.default, "stream", 0.1, 0, -32768, 32767, "int16"),
        program(OPS.layer_norm.default, "norm", 1e-5, 0.1, 0, "int16", gamma=GAMMA, beta=GAMMA),
        program(OPS.quantize_dequantize.default, "stem", 0.1, -98, -128, 72, "int8"),
        program(OPS.softmax.default, 12),
    ],
    ids=["stream", "normalisation of a stream", "int8 already", "no codes"],
)
def test_everything_else_stays(graph: fx.GraphModule) -> None:
    before = call_of(graph)
    to_int8(graph)
    assert call_of(graph) == before


def site(params: QuantParams) -> ActivationSite:
    return ActivationSite(name="stem", op="conv2d", role="compute", bits=8, params=params, reason="asked for")


def test_a_record_says_what_the_graph_does() -> None:
    params = QuantParams(scale=0.1, zero_point=30, qmin=0, qmax=200, storage="uint8")
    moved = QuantParams(scale=0.1, zero_point=-98, qmin=-128, qmax=72, storage="int8")
    assert signed(params) == moved
    assert as_int8(site(params)) == site(moved)


def test_the_ends_of_the_range_are_the_ends_of_int8() -> None:
    found = signed(QuantParams(scale=1.0, zero_point=255, qmin=0, qmax=255, storage="uint8"))
    assert (found.zero_point, found.qmin, found.qmax) == (127, -128, 127)


@pytest.mark.parametrize("storage", ["int16", "int8"])
def test_a_record_of_other_codes_stays(storage: str) -> None:
    other = site(QuantParams(scale=0.1, zero_point=5, qmin=-100, qmax=100, storage=storage))
    assert as_int8(other) is other
