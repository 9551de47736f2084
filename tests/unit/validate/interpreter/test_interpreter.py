"""The interpreter on whole graphs, with tolerance 0 against the runtime, and its own rules: overrides,
memory, errors.
"""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from mixport.records.errors import BadInputError, UnsupportedModelError
from mixport.records.targets import Target
from mixport.validate.interpreter.interpreter import Interpreter
from mixport.validate.run.compare import compare
from mixport.validate.run.session import run_codes
from tests.unit.validate.qdq_graphs import QdqBuilder, build_network, build_transformer

f32 = np.float32


def images(count: int = 8, shape: tuple[int, ...] = (3, 8, 8), seed: int = 1) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(count, *shape)) * 2).astype(f32)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("clip", [None, 3, 15])
def test_network_equals_the_runtime(bits: int, clip: int | None, target: Target) -> None:
    model = build_network(bits=bits, clip=clip).build("head_sum")
    interpreter, x = Interpreter(model), images()
    assert interpreter.island_names == () and interpreter.entry_sites == ()
    execution = interpreter.run(x)
    got = run_codes(model, x, interpreter.sites, target.session)
    assert execution.output is not None
    found = compare(
        {**execution.codes, "output": execution.output},
        got,
        order=[*interpreter.sites, "output"],
        executor="o",
        inputs="i",
    )
    assert (found.tensors, found.mismatches, found.first) == (9, 0, None)
    assert len(np.unique(execution.codes["join"])) > 100


def test_sites_are_named_after_the_clip_where_there_is_one() -> None:
    interpreter = Interpreter(build_network().build("head_sum"))
    assert interpreter.sites == (
        "input_codes", "stem", "stem.requantised", "branch", "join", "join.requantised", "depthwise", "pool",
    )  # fmt: skip
    site = next(site for site in interpreter.plan.sites if site.name == "stem.requantised")
    assert (site.low, site.high, site.node.op) == (0, 15, "Clip")


def test_transformer_equals_the_runtime_between_its_islands(target: Target) -> None:
    model = build_transformer().build("logits_sum")
    interpreter, x = Interpreter(model), images()
    assert interpreter.entry_sites == ("norm1", "attention")
    assert interpreter.island_names == ("norm1 (LayerNormalization)", "softmax (Softmax)")
    got = run_codes(model, x, interpreter.sites, target.session)
    execution = interpreter.run(x, overrides={name: got[name] for name in interpreter.entry_sites})
    assert set(execution.codes) == set(interpreter.sites)
    for name in interpreter.sites:
        np.testing.assert_array_equal(execution.codes[name], got[name], err_msg=name)
    assert execution.output is not None
    np.testing.assert_array_equal(execution.output, got["output"])


def test_nothing_is_invented_behind_an_island_without_overrides() -> None:
    execution = Interpreter(build_transformer().build("logits_sum")).run(images())
    assert set(execution.codes) == {"input_codes", "patches", "stream0"}
    assert execution.output is None


def test_overrides_replace_codes_and_are_used_behind() -> None:
    interpreter, x = Interpreter(build_network().build("head_sum")), images(2)
    plain = interpreter.run(x)
    changed = interpreter.run(x, overrides={"branch": np.zeros_like(plain.codes["branch"])})
    assert not changed.codes["branch"].any()
    np.testing.assert_array_equal(changed.codes["stem"], plain.codes["stem"])
    assert (changed.codes["join"] != plain.codes["join"]).any()


def test_an_override_of_another_shape_is_refused() -> None:
    interpreter = Interpreter(build_network().build("head_sum"))
    with pytest.raises(BadInputError, match="branch have shape"):
        interpreter.run(images(2), overrides={"branch": np.zeros((1, 2), np.uint8)})


def test_one_dimensional_convolution(target: Target) -> None:
    b = QdqBuilder(shape=("N", 4, 20))
    b.quantise("input", "x", 0.03, 120)
    result = b.layer("Conv", "x", (6, 2, 3), name="conv", pads=[2, 1], strides=[2], dilations=[2], group=2)
    model = b.build(b.qdq(result, "y", 0.3, 128))
    x = images(shape=(4, 20))
    got = run_codes(model, x, ["y"], target.session)
    np.testing.assert_array_equal(Interpreter(model).run(x).codes["y"], got["y"])


def test_large_batches_are_cut_without_a_trace() -> None:
    interpreter, x = Interpreter(build_network().build("head_sum")), images(700)
    whole = interpreter.run(x)
    for start in (0, 350):
        part = interpreter.run(x[start : start + 350])
        for name, codes in part.codes.items():
            np.testing.assert_array_equal(codes, whole.codes[name][start : start + 350])


def test_every_value_expires_but_the_outputs() -> None:
    plan = Interpreter(build_network().build("head_sum")).plan
    expired = [name for step in plan.steps for name in step.expiring]
    assert len(expired) == len(set(expired))
    assert "output" not in expired and "input" in expired and "join" in expired


def test_codes_as_inputs() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["a", "s", "z"], ["f"]),
        helper.make_node("QuantizeLinear", ["f", "t", "z"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(f32(0.3), "s"),
        numpy_helper.from_array(f32(0.2), "t"),
        numpy_helper.from_array(np.uint8(9), "z"),
    ]
    ports = (
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [None])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [None])],
    )
    model = helper.make_model(
        helper.make_graph(nodes, "g", *ports, constants), opset_imports=[helper.make_opsetid("", 21)]
    )
    codes = np.arange(256, dtype=np.uint8)
    got = Interpreter(model).run_feeds({"a": codes}).outputs["y"]
    expected = np.clip(np.rint((codes.astype(int) - 9).astype(f32) * f32(0.3) / f32(0.2)) + 9, 0, 255)
    assert got is not None
    np.testing.assert_array_equal(got, expected)


def test_a_missing_input_is_named() -> None:
    with pytest.raises(BadInputError, match="no array for input input"):
        Interpreter(build_network().build("head_sum")).run_feeds({})


def test_wrong_image_sizes_name_the_node() -> None:
    b = QdqBuilder(shape=("N", 3, 8, 8))
    b.quantise("input", "x", 0.03, 128)
    interpreter = Interpreter(
        b.build(b.node("Reshape", [b.dequantise("x"), b.constant(np.array([1, 7]))], name="bend"))
    )
    with pytest.raises(UnsupportedModelError, match="node bend"):
        interpreter.run(images(1))


def test_sums_beyond_int32_are_refused() -> None:
    b = QdqBuilder(shape=("N", 3, 8, 8))
    flat = b.node("Flatten", [b.quantise("input", "x", 0.03, 0)])
    b.quantisation[flat] = b.quantisation["x"]
    scale = np.full(2, 0.1, f32)
    bias = b.bias(np.array([2**31 - 1, 0]), b.quantisation["x"][0], scale)
    weight = b.weight(np.full((2, 192), 127), scale)
    result = b.node("Gemm", [b.dequantise(flat), weight, bias], transB=1, name="huge")
    interpreter = Interpreter(b.build(b.qdq(result, "y", 1.0, 0)))
    with pytest.raises(UnsupportedModelError, match=r"node huge .*int32"):
        interpreter.run(np.full((1, 3, 8, 8), 9, f32))


def test_unsupported_movement_is_refused_not_guessed() -> None:
    b = QdqBuilder()
    codes = b.quantise("input", "x", 0.03, 128)
    padded = b.node(
        "Pad", [codes, b.constant(np.array([0, 0, -1, 1, 0, 0, 1, 1]))], mode="reflect", name="mirror"
    )
    b.quantisation[padded] = b.quantisation["x"]
    interpreter = Interpreter(b.build(b.dequantise(padded)))
    with pytest.raises(UnsupportedModelError, match="mirror"):
        interpreter.run(images(1))


def computed_scale(*, zero_point: bool = True, scale_kind: str = "Sqrt", **attributes: int) -> Interpreter:
    """DequantizeLinear of int16 codes [rows, columns] whose scale and zero point, one a row, the graph
    computes.
    """
    nodes = [
        helper.make_node(scale_kind, ["squares"], ["scale"]),
        helper.make_node("QuantizeLinear", ["mean", "three", "zero"], ["z"]),
        helper.make_node(
            "DequantizeLinear",
            ["codes", "scale", *(["z"] if zero_point else [])],
            ["y"],
            axis=0,
            **attributes,
        ),
    ]
    inputs = [
        helper.make_tensor_value_info("codes", TensorProto.INT16, ["rows", "columns"]),
        helper.make_tensor_value_info("squares", TensorProto.FLOAT, ["rows"]),
        helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["rows"]),
    ]
    constants = [numpy_helper.from_array(f32(3), "three"), numpy_helper.from_array(np.int16(0), "zero")]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", inputs, [output], constants)
    return Interpreter(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


@pytest.mark.parametrize(
    ("zero_point", "wanted"),
    [(True, [[65535.0, 0.0], [-24.0, 0.0]]), (False, [[32767.0, -32768.0], [24.0, 48.0]])],
)
def test_a_scale_and_a_zero_point_a_row_may_be_computed(zero_point: bool, wanted: list[list[float]]) -> None:
    """Scales sqrt(1) and sqrt(576) = 24; zero points -98307 / 3, saturated to -32768, and round(7 / 3) =
    2.
    """
    codes = np.array([[32767, -32768], [1, 2]], np.int16)
    feeds = {"codes": codes, "squares": np.array([1, 576], f32), "mean": np.array([-98307, 7], f32)}
    interpreter = computed_scale(zero_point=zero_point)
    assert interpreter.island_names == ()
    np.testing.assert_array_equal(interpreter.run_feeds(feeds).outputs["y"], np.array(wanted, f32))


@pytest.mark.parametrize("case", [{"scale_kind": "Exp"}, {"block_size": 2}])
def test_a_computed_scale_behind_an_island_or_in_blocks_is_not_executed(case: dict[str, object]) -> None:
    interpreter = computed_scale(**case)
    execution = interpreter.run_feeds(
        {"codes": np.ones((2, 2), np.int16), "squares": np.ones(2, f32), "mean": np.ones(2, f32)}
    )
    assert execution.outputs["y"] is None
