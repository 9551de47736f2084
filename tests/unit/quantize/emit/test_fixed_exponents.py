"""Numerators of a softmax from the codes of its scores: what the new operator is given, and what it gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import fx

from mixport.arithmetic.attention_softmax import Exponent, choose_exponent, is_proved, numerators
from mixport.arithmetic.torch_ops import OPS
from mixport.model.programs.fx_graph import aten
from mixport.quantize.emit import fixed_exponents
from mixport.quantize.emit.fixed_exponents import fix_exponent
from mixport.records.errors import InvariantError

SCALE, ZERO = 0.25, 100


def scores(*, storage: str | None = "uint8", moved: bool = False) -> tuple[fx.GraphModule, fx.Node]:
    """The numerators of an image's codes, or of floats; through a move of codes where that is asked for."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    if storage is not None:
        ends = (0, 255) if storage == "uint8" else (-32768, 32767)
        args = (x, "scores", SCALE, ZERO, *ends, storage)
        x = graph.call_function(OPS.quantize_dequantize.default, args)
    if moved:
        x = graph.call_function(aten.transpose.int, (x, 0, 1))
    node = graph.call_function(OPS.softmax_numerators.default, (x, 0.5))
    node.meta["nn_module_stack"] = {"": ("", "M"), "blocks.0.attn": ("blocks.0.attn", "Attention")}
    graph.output(node)
    return fx.GraphModule(torch.nn.Module(), graph), node


def fixed(bits: int, *, moved: bool = False) -> tuple[fx.GraphModule, fx.Node]:
    graph, node = scores(moved=moved)
    made = fix_exponent(graph, node, bits=bits)
    node.replace_all_uses_with(made)
    graph.graph.erase_node(node)
    graph.recompile()
    return graph, made


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_scores_scale_and_the_factor_are_one_step_that_is_proved(bits: int) -> None:
    graph, made = fixed(bits)
    step = made.args[4]
    assert isinstance(step, float)
    assert made.target is OPS.coded_numerators.default
    assert made.args[1:4] + made.args[5:] == ("blocks.0.attn", SCALE, ZERO, "uint8")
    wanted = choose_exponent(SCALE * 0.5, bits=bits)
    assert wanted is not None and step == wanted.step
    assert step == pytest.approx(SCALE * 0.5, rel=2.0**-9)
    assert is_proved(Exponent(step=step, bits=bits))
    assert [node.op for node in graph.graph.nodes] == ["placeholder", *["call_function"] * 2, "output"]


def test_the_graph_gives_the_numerators_of_the_codes() -> None:
    graph, made = fixed(8)
    codes = np.random.default_rng(0).integers(0, 256, (16, 9))
    values = graph(torch.as_tensor((codes - ZERO) * SCALE, dtype=torch.float32)).numpy()
    found = np.minimum(np.rint(values * 256), 255)
    np.testing.assert_array_equal(found, numerators(codes, Exponent(step=float(made.args[4]), bits=8)))


def test_codes_are_found_behind_a_move() -> None:
    _, made = fixed(8, moved=True)
    assert made.args[2:4] == (SCALE, ZERO)
    source = made.args[0]
    assert isinstance(source, fx.Node) and source.target is aten.transpose.int


def test_numerators_outside_a_module_have_the_name_of_their_node() -> None:
    graph, node = scores()
    del node.meta["nn_module_stack"]
    assert fix_exponent(graph, node, bits=8).args[1] == node.name


@pytest.mark.parametrize("storage", [None, "int16"])
def test_scores_without_eight_bit_codes_are_our_bug(storage: str | None) -> None:
    graph, node = scores(storage=storage)
    with pytest.raises(InvariantError, match=r"the scores of softmax blocks\.0\.attn have no 8-bit codes"):
        fix_exponent(graph, node, bits=8)


def test_no_exponent_near_the_wanted_one_is_our_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(step: float, *, bits: int) -> None:
        assert (step, bits) == (SCALE * 0.5, 8)

    monkeypatch.setattr(fixed_exponents, "choose_exponent", none)
    graph, node = scores()
    with pytest.raises(InvariantError, match=r"softmax blocks\.0\.attn: no exponent near 0\.125"):
        fix_exponent(graph, node, bits=8)
