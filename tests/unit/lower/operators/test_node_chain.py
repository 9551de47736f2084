"""Nodes made one after the other: their names, the constants they share, and where they are put."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from mixport.lower.onnx_graph import constant_of
from mixport.lower.operators.node_chain import NodeChain


@pytest.fixture
def model() -> ir.Model:
    """An operator between two others."""
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[2,3] x) => (float[2,3] y)
    { a = Neg(x) b = Sigmoid(a) y = Relu(b) }"""
    return ir.from_proto(onnx.parser.parse_model(text))


def test_nodes_are_numbered_and_named_after_their_operator(model: ir.Model) -> None:
    step = NodeChain(model.graph, "block.act")
    x = model.graph.inputs[0]
    result = step("Cast", step("Abs", x), to=int(ir.DataType.DOUBLE))
    assert [n.name for n in step.nodes] == ["block.act/0.Abs", "block.act/1.Cast"]
    assert [n.outputs[0].name for n in step.nodes] == ["block.act/0.Abs", "block.act/1.Cast"]
    assert step.nodes[1].inputs[0] is step.nodes[0].outputs[0]
    assert step.nodes[1].attributes["to"].as_int() == ir.DataType.DOUBLE
    assert result is step.nodes[1].outputs[0]


def test_nodes_are_in_the_graph_only_once_they_are_inserted(model: ir.Model) -> None:
    step = NodeChain(model.graph, "act")
    (old,) = [n for n in model.graph if n.op_type == "Sigmoid"]
    result = step("Mul", step("Abs", old.inputs[0]), step.scalar(2.0))
    assert [n.op_type for n in model.graph] == ["Neg", "Sigmoid", "Relu"]
    step.insert(old, result)
    assert [n.op_type for n in model.graph] == ["Neg", "Abs", "Mul", "Sigmoid", "Relu"]
    assert old.outputs[0].uses() == ()
    model.graph.remove(old, safe=True)
    x = np.asarray([[-1, 2, -3], [4, -5, 0]], np.float32)
    (y,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x})
    np.testing.assert_array_equal(y, 2 * np.abs(x))


def test_chains_share_equal_constants(model: ir.Model) -> None:
    one, other = NodeChain(model.graph, "a"), NodeChain(model.graph, "b")
    assert one.scalar(0.5) is other.scalar(0.5)
    assert one.integers(-1, 8) is other.integers(-1, 8)
    assert sorted(model.graph.initializers) == ["float32/0.5", "int64/-1,8"]


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(np.float32, "float32/1.0"), (np.float64, "float64/1.0"), (np.uint16, "uint16/1"), (np.int8, "int8/1")],
)
def test_a_scalar_has_the_type_asked_for(model: ir.Model, dtype: type[np.generic], name: str) -> None:
    value = NodeChain(model.graph, "a").scalar(1, dtype)
    held = constant_of(value)
    assert value.name == name
    assert held is not None and (held.dtype, held.shape, held.item()) == (dtype, (), 1)


def test_scalars_that_differ_in_the_last_place_stay_apart(model: ir.Model) -> None:
    step = NodeChain(model.graph, "a")
    near = float(np.nextafter(np.float32(0.1), np.float32(1)))
    held = [constant_of(step.scalar(value)) for value in (0.1, near)]
    assert [one.item() for one in held if one is not None] == [float(np.float32(0.1)), near]


def test_integers_are_int64_lists_in_order(model: ir.Model) -> None:
    held = constant_of(NodeChain(model.graph, "a").integers(3, -1, 3))
    assert held is not None and (held.dtype, held.tolist()) == (np.int64, [3, -1, 3])


@pytest.mark.parametrize(("keepdims", "shape"), [(1, (2, 1)), (0, (2,))])
def test_a_reduction_is_over_the_last_axis(model: ir.Model, keepdims: int, shape: tuple[int, ...]) -> None:
    step = NodeChain(model.graph, "a")
    (old,) = [n for n in model.graph if n.op_type == "Relu"]
    total = step.over_last("ReduceSum", model.graph.inputs[0], keepdims=keepdims)
    step.insert(old, total)
    model.graph.remove(old, safe=True)
    model.graph.outputs[0].shape = ir.Shape(shape)
    (y,) = ReferenceEvaluator(ir.to_proto(model)).run(
        None, {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
    )
    assert y.shape == shape
    assert y.ravel().tolist() == [3, 12]
