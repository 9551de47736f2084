"""The plan of a file: how each node runs, which tensors are sites, what is folded, and when tensors go."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from mixport.validate.interpreter.execution_plan import ExecutionPlan, build_plan
from mixport.validate.interpreter.graph import read_graph
from mixport.validate.interpreter.interpreter import Interpreter
from mixport.validate.interpreter.values import Dequantised
from tests.unit.validate.qdq_graphs import QdqBuilder, build_network, build_transformer

f32 = np.float32


def plan_of(b: QdqBuilder, output: str, **options: int) -> ExecutionPlan:
    return build_plan(read_graph(b.build(output, **options)))


def hows(plan: ExecutionPlan) -> dict[str, str]:
    return {step.node.outputs[0]: step.how for step in plan.steps}


def test_a_network_runs_on_integers() -> None:
    plan = plan_of(build_network(), "head_sum")
    how = hows(plan)
    assert plan.islands == ()
    fused = [step.node.name for step in plan.steps if step.how == "fused"]
    assert fused == ["stem", "branch", "join", "depthwise", "pool", "head"]
    # The quantiser behind a fused node is absorbed; the one behind DequantizeLinear runs by itself.
    assert (how["stem"], how["stem.requantised_raw"], how["input_codes"]) == ("pass", "quantise", "quantise")
    step = next(step for step in plan.steps if step.node.outputs[0] == "branch_sum")
    assert step.kernel == "conv" and step.saturation is not None
    assert (step.saturation.scale, step.saturation.zero_point) == (f32(0.25), 117)


def test_sites_have_the_range_behind_their_clip() -> None:
    sites = {site.name: site for site in plan_of(build_network(), "head_sum").sites}
    names = "input_codes stem stem.requantised branch join join.requantised depthwise pool"
    assert [*sites] == names.split()
    assert (sites["depthwise"].low, sites["depthwise"].high, sites["depthwise"].node.op) == (0, 15, "Clip")
    assert (sites["stem"].low, sites["stem"].high, sites["stem"].dtype) == (0, 255, np.dtype(np.uint8))
    assert not any(site.entry for site in sites.values())


def test_sites_behind_islands_are_entries() -> None:
    plan = plan_of(build_transformer(), "logits_sum")
    assert [step.node.name for step in plan.islands] == ["norm1", "softmax"]
    assert [site.name for site in plan.sites if site.entry] == ["norm1", "attention"]
    (stream,) = (site for site in plan.sites if site.name == "stream1")
    assert (stream.low, stream.high) == (-32768, 32767)
    # A node behind an island is no island, too.
    assert next(step.how for step in plan.steps if step.node.name == "softmax") == "island"
    assert plan.tensors["attention"].kind == "codes"


def test_constants_are_folded_and_weights_stay_codes() -> None:
    b = QdqBuilder()
    axes = b.node("Constant", [], value_ints=[2])
    total = b.node("Mul", [b.node("Cast", [axes], to=TensorProto.FLOAT), b.constant(f32(1.5))])
    size = b.node("Shape", [b.constant(np.zeros((3, 5)))])
    weight = b.weight(np.asarray([[-7, 3]]), np.asarray([0.5]), bits=4)
    b.nodes.append(onnx.helper.make_node("Sub", ["input", total], ["y"]))
    plan = plan_of(b, "y")
    np.testing.assert_array_equal(plan.constants[total], np.asarray([3.0], f32))
    np.testing.assert_array_equal(plan.constants[size], [3, 5])
    folded = plan.constants[weight]
    assert isinstance(folded, Dequantised) and folded.codes.dtype == np.int8
    assert folded.codes.tolist() == [[-7, 3]]
    info = plan.tensors[weight]
    assert (info.kind, info.low, info.high, info.constant) == ("dequantised", -7, 3, True)


INPUTS = {
    "float": ("float", 0, 0),
    "uint8": ("codes", 0, 255),
    "int16": ("codes", -32768, 32767),
    "int64": ("index", 0, 0),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_inputs_are_what_their_type_says(kind: str) -> None:
    text = '<ir_version: 10, opset_import: ["" : 21]> g (K[N] x) => (K[N] y) { y = Identity (x) }'
    info = build_plan(read_graph(onnx.parser.parse_model(text.replace("K", kind)))).tensors["x"]
    assert (info.kind, info.low, info.high) == INPUTS[kind]


def test_a_tensor_expires_after_its_last_reader_and_outputs_stay() -> None:
    b = QdqBuilder()
    x = b.qdq("input", "x", 0.5, 3)
    b.node("Sub", [b.node("Neg", [x], output="n"), x], output="output")
    steps = {step.node.outputs[0]: step for step in plan_of(b, "output").steps}
    assert set(steps["n"].expiring) == set()
    assert {"n", x} <= set(steps["output"].expiring) and "output" not in steps["output"].expiring
    assert "x" in steps[x].expiring and "input" in steps["x"].expiring


def test_a_flat_table_s_site_is_the_tensor_in_its_own_shape() -> None:
    b = QdqBuilder(shape=(2, 3))
    codes = b.quantise("input", "x", 0.5, 3)
    flat = b.node("Cast", [b.node("Reshape", [codes, b.constant(np.asarray([-1]))])], to=TensorProto.INT32)
    table = b.constant(np.arange(255, -1, -1).astype(np.uint8))
    looked = b.node("GatherElements", [table, flat])
    b.node("Reshape", [looked, b.constant(np.asarray([2, 3]))], output="t")
    model = b.build("t", output_type=TensorProto.UINT8)
    plan = build_plan(read_graph(model))
    assert [site.name for site in plan.sites] == ["x", "t"]
    got = Interpreter(model).run(np.full((2, 3), 1.25, f32)).outputs["output"]
    # 1.25 / 0.5 = 2.5 rounds to 2, so the code is 5.
    np.testing.assert_array_equal(got, np.full((2, 3), 250, np.uint8))


def test_a_proved_function_is_computed_and_an_unproved_one_is_an_island() -> None:
    # Code 117 is the real value 0, of which Sigmoid is 0.5: at 1 / 255 that is the tie 127.5.
    for scale, how in ((1 / 256, "function"), (1 / 255, "island")):
        b = QdqBuilder()
        sigmoid = b.node("Sigmoid", [b.qdq("input", "x", 0.037, 117)], name="sigmoid")
        plan = plan_of(b, b.quantise(sigmoid, "y", scale, 0), output_type=TensorProto.UINT8)
        assert hows(plan)[sigmoid] == how
        assert (plan.islands == ()) == (how == "function")
