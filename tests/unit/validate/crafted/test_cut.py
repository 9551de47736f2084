"""A unit as a model of its own: the file's nodes and integers, and the same codes as inside the whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto

from mixport.records.errors import InvariantError
from mixport.validate.crafted.cut import cut_unit, input_names
from mixport.validate.interpreter.fused_units import FusedUnit
from mixport.validate.interpreter.interpreter import Interpreter
from tests.unit.validate.qdq_graphs import QdqBuilder, build_network, build_transformer


@pytest.fixture(scope="module")
def whole() -> Interpreter:
    return Interpreter(build_network().build("head_sum"))


def unit_of(interpreter: Interpreter, output: str) -> FusedUnit:
    return next(unit for unit in interpreter.units if unit.output == output)


def test_every_unit_gives_alone_what_it_gives_in_the_file(whole: Interpreter) -> None:
    plan = whole.plan.graph
    names = sorted({name for unit in whole.units for name in input_names(unit)})
    watching = Interpreter(plan.proto, watch=names)
    x = (np.random.default_rng(3).normal(size=(4, 3, 8, 8)) * 3).astype(np.float32)
    execution = watching.run(x)
    assert len(whole.units) == 8
    for unit in whole.units:
        feeds = {name: execution.codes[name] for name in input_names(unit)}
        model = cut_unit(unit, plan, ranks=[array.ndim for array in feeds.values()])
        got = Interpreter(model).run_feeds(feeds).outputs[unit.output]
        expected = execution.output if unit.output == "head_sum" else execution.codes[unit.output]
        assert got is not None and expected is not None and got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected, err_msg=unit.output)


def test_only_what_the_unit_needs_is_kept(whole: Interpreter) -> None:
    model = cut_unit(unit_of(whole, "branch"), whole.plan.graph, ranks=[4])
    assert [node.op_type for node in model.graph.node] == [
        "DequantizeLinear",
        "Cast",
        "DequantizeLinear",
        "DequantizeLinear",
        "Conv",
        "QuantizeLinear",
    ]
    stored = {one.name: one.data_type for one in model.graph.initializer}
    assert stored["branch.weight"] == TensorProto.INT4 and stored["branch.bias"] == TensorProto.INT32
    assert "stem.weight" not in stored and len(stored) == 9
    assert (model.opset_import[0].version, model.ir_version) == (21, 10)


def test_inputs_are_code_tensors_with_free_axes(whole: Interpreter) -> None:
    (port,) = cut_unit(unit_of(whole, "branch"), whole.plan.graph, ranks=[4]).graph.input
    assert port.name == "stem.requantised" and port.type.tensor_type.elem_type == TensorProto.UINT8
    assert [dim.dim_param for dim in port.type.tensor_type.shape.dim] == [
        f"stem.requantised_axis{axis}" for axis in range(4)
    ]


@pytest.mark.parametrize(
    ("output", "elem_type"), [("branch", TensorProto.UINT8), ("head_sum", TensorProto.FLOAT)]
)
def test_the_output_has_the_type_of_the_unit(output: str, elem_type: int, whole: Interpreter) -> None:
    unit = unit_of(whole, output)
    (port,) = cut_unit(unit, whole.plan.graph, ranks=[4 if output == "branch" else 2]).graph.output
    assert (port.name, port.type.tensor_type.elem_type) == (output, elem_type)


def test_a_table_has_the_type_of_its_codes() -> None:
    interpreter = Interpreter(build_transformer().build("logits_sum"))
    unit = unit_of(interpreter, "mlp.table")
    model = cut_unit(unit, interpreter.plan.graph, ranks=[3])
    assert [node.op_type for node in model.graph.node] == ["Cast", "Gather"]
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.UINT8


def test_a_tensor_read_twice_is_one_input() -> None:
    b = QdqBuilder()
    x = b.qdq("input", "x", 0.5, 3)
    interpreter = Interpreter(b.build(b.qdq(b.node("Add", [x, x]), "y", 0.25, 7)))
    unit = unit_of(interpreter, "y")
    assert len(unit.inputs) == 2 and input_names(unit) == ("x",)
    model = cut_unit(unit, interpreter.plan.graph, ranks=[2])
    got = Interpreter(model).run_feeds({"x": np.asarray([[0, 3, 66, 255]], np.uint8)}).outputs["y"]
    np.testing.assert_array_equal(got, np.asarray([[0, 7, 255, 255]], np.uint8))


def test_a_unit_that_cannot_be_cut_is_refused(whole: Interpreter) -> None:
    unit = replace(unit_of(whole, "branch"), uncut="a fence stands in the way")
    with pytest.raises(InvariantError, match="unit branch cannot be cut: a fence stands in the way"):
        cut_unit(unit, whole.plan.graph, ranks=[4])


def test_one_rank_an_input_is_asked_for(whole: Interpreter) -> None:
    with pytest.raises(ValueError, match="shorter"):
        cut_unit(unit_of(whole, "join"), whole.plan.graph, ranks=[4])
