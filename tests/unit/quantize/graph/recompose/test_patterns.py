"""Which nodes a pattern matches, and what its names stand for."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from mixport.model.programs.fx_graph import aten
from mixport.quantize.graph.recompose.patterns import Pattern, bind

SILU = (aten.mul.Tensor, "x", (aten.sigmoid.default, "x"))


class Nodes:
    """x and y, and calls of them."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.x, self.y = self.graph.placeholder("x"), self.graph.placeholder("y")

    def __call__(self, target: object, *args: object) -> fx.Node:
        return self.graph.call_function(target, args)


def test_a_name_stands_for_any_node() -> None:
    of = Nodes()
    node = of(aten.relu.default, of.x)
    assert bind(node, "x") == {"x": node}
    assert bind(node, (aten.relu.default, "inner")) == {"inner": of.x}
    assert bind(3, "x") is None and bind(None, "x") is None and bind([of.x], "x") is None


def test_two_names_may_stand_for_one_node() -> None:
    of = Nodes()
    assert bind(of(aten.mul.Tensor, of.x, of.x), (aten.mul.Tensor, "a", "b")) == {"a": of.x, "b": of.x}


def test_one_name_stands_for_one_node() -> None:
    of = Nodes()
    assert bind(of(aten.mul.Tensor, of.x, of(aten.sigmoid.default, of.x)), SILU) == {"x": of.x}
    assert bind(of(aten.mul.Tensor, of.x, of(aten.sigmoid.default, of.y)), SILU) is None
    # Equal values are not enough: two calls are two nodes.
    one, other = of(aten.relu.default, of.x), of(aten.relu.default, of.x)
    assert bind(of(aten.mul.Tensor, one, of(aten.sigmoid.default, other)), SILU) is None


def test_a_name_that_is_bound_before_must_be_met_again() -> None:
    of = Nodes()
    node = of(aten.sigmoid.default, of.x)
    assert bind(node, (aten.sigmoid.default, "x"), {"x": of.x, "other": of.y}) == {"x": of.x, "other": of.y}
    assert bind(node, (aten.sigmoid.default, "x"), {"x": of.y}) is None


def test_order_counts() -> None:
    of = Nodes()
    assert bind(of(aten.mul.Tensor, of(aten.sigmoid.default, of.x), of.x), SILU) is None


@pytest.mark.parametrize(
    ("value", "number", "matches"),
    [
        (3, 3, True),
        (3.0, 3, True),
        (float("-inf"), float("-inf"), True),
        (None, None, True),
        (True, True, True),
        (3, 4, False),
        (0, None, False),
        (None, 0, False),
        (float("inf"), float("-inf"), False),
    ],
)
def test_numbers_and_none_match_what_they_equal(value: object, number: Pattern, matches: bool) -> None:
    of = Nodes()
    found = bind(of(aten.clamp.default, of.x, value), (aten.clamp.default, "x", number))
    assert found == ({"x": of.x} if matches else None)


def test_a_node_is_no_number() -> None:
    of = Nodes()
    assert bind(of(aten.add.Tensor, of.x, of.y), (aten.add.Tensor, "x", 3)) is None
    assert bind(of.x, 3) is None


@pytest.mark.parametrize("pattern", [(aten.clamp.default, "x"), (aten.clamp.default, "x", 0, 6)])
def test_every_argument_has_its_pattern(pattern: Pattern) -> None:
    of = Nodes()
    assert bind(of(aten.clamp.default, of.x, 0), pattern) is None


def test_another_operator_does_not_match_and_neither_does_an_input() -> None:
    of = Nodes()
    assert bind(of(aten.relu.default, of.x), (aten.sigmoid.default, "x")) is None
    assert bind(of.x, (aten.sigmoid.default, "x")) is None
    assert bind(3, (aten.sigmoid.default, "x")) is None


def test_overloads_are_different_operators() -> None:
    of = Nodes()
    assert bind(of(aten.mul.Scalar, of.x, 2), (aten.mul.Tensor, "x", 2)) is None


def test_an_argument_that_changes_the_function_matches_nothing() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    plain = graph.call_function(torch.ops.aten.add.Tensor, (x, 3))
    doubled = graph.call_function(torch.ops.aten.add.Tensor, (x, 3), {"alpha": 2})
    placed = graph.call_function(torch.ops.aten.add.Tensor, (x, 3), {"dtype": torch.float32})
    pattern = (torch.ops.aten.add.Tensor, "x", 3)
    assert [bind(node, pattern) for node in (plain, doubled, placed)] == [{"x": x}, None, {"x": x}]
