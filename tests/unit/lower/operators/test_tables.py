"""Tables of codes as operators: which form, how many nodes, and that onnxruntime puts no Transpose around one
between convolutions.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from mixport.lower.onnx_graph import remove_dead
from mixport.lower.operators.tables import clip_bounds, expand_table
from mixport.lower.passes.movement import CancelRequantizePass

_TABLES = {
    "random": np.random.default_rng(3).integers(0, 256, 256),
    "bounded": np.clip(np.arange(256), 0, 180),
    "straight": np.clip(np.rint((np.arange(256) - 100) * 0.3371) + 127, 0, 255).astype(np.int64),
}
_QDQ = "float s = {0.05}, uint8 z = {120}, float ws = {0.01}, int8 wz = {0}"


def lowered(
    table: str,
    *,
    form: str = "table",
    shape: str = "n,4,6,6",
    convolutions: bool = True,
    shared: bool = False,
    storage: str = "uint8",
) -> onnx.ModelProto:
    """A Lookup, between two 1x1 convolutions or alone; `shared`: others read its input, too."""
    entries = ",".join(map(str, _TABLES[table]))
    weight = ",".join(["1", "-2", "3", "4"] * 4)
    lookup = (
        'v = mixport.Lookup <site = "act", in_scale = 0.05, in_zero_point = 120, scale = 0.0371, '
        f'zero_point = 3, form = "{form}", storage = "{storage}"> (d, t)'
    )
    before = """wf = DequantizeLinear(w, ws, wz) c = Conv(xf, wf) q = QuantizeLinear(c, s, z) d =
    DequantizeLinear(q, s, z)"""
    after = "c2 = Conv(v, wf) y = QuantizeLinear(c2, s, z)"
    if not convolutions:
        before, after = "d = DequantizeLinear(q0, s, z)", "y = QuantizeLinear(v, s, z)"
    outputs = f"uint8[{shape}] y, uint8[{shape}] extra" if shared else f"uint8[{shape}] y"
    more = "extra = QuantizeLinear(d, ws, z)" if shared else ""
    text = f"""<ir_version: 10, opset_import: ["" : 21, "mixport" : 1]>
        g (float[{shape}] x) => ({outputs}) <{_QDQ}, int8[4,4,1,1] w = {{{weight}}},
        uint8[256] t = {{{entries}}}> {{
        q0 = QuantizeLinear(x, s, z) xf = DequantizeLinear(q0, s, z) {before} {lookup} {after} {more} }}"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    graph = model.graph
    (old,) = [n for n in graph if n.op_type == "Lookup"]
    sizes = [int(size) if size.isdigit() else None for size in shape.split(",")]
    old.outputs[0].shape = ir.Shape(sizes)
    expand_table(graph, old)
    graph.remove(old, safe=True)
    model.opset_imports.pop("mixport", None)
    model = CancelRequantizePass()(model).model
    remove_dead(model.graph)
    return ir.to_proto(model)


def optimised(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(n.op_type for n in onnx.load(folder / "optimised.onnx").graph.node)


def test_between_convolutions_the_table_reads_channels_last_codes(tmp_path: Path) -> None:
    model = lowered("random")
    counts = Counter(n.op_type for n in model.graph.node)
    assert (counts["GatherElements"], counts["Cast"], counts["Reshape"], counts["Transpose"]) == (1, 1, 2, 2)
    # One Transpose at either end of the model remains: none around the table.
    assert optimised(model, tmp_path)["Transpose"] == 2


def test_elsewhere_the_codes_are_flattened_as_they_are() -> None:
    counts = Counter(n.op_type for n in lowered("random", shape="n,7,5", convolutions=False).graph.node)
    assert (counts["GatherElements"], counts["Reshape"], counts["Transpose"], counts["Gather"]) == (
        1,
        2,
        0,
        0,
    )


def test_a_table_that_bounds_its_index_is_a_clip_where_others_read_the_codes() -> None:
    counts = Counter(n.op_type for n in lowered("bounded", shared=True).graph.node)
    assert (counts["Clip"], counts["GatherElements"], counts["Cast"]) == (1, 0, 0)
    counts = Counter(n.op_type for n in lowered("bounded").graph.node)
    assert (counts["Clip"], counts["GatherElements"]) == (0, 1)


def test_a_proved_function_is_the_operator_itself(tmp_path: Path) -> None:
    model = lowered("random", form="Sigmoid")
    counts = Counter(n.op_type for n in model.graph.node)
    assert (counts["Sigmoid"], counts["GatherElements"], counts["Cast"]) == (1, 0, 0)
    assert optimised(model, tmp_path)["QLinearSigmoid"] == 1


def test_a_straight_table_is_one_byte_table_of_the_runtime(tmp_path: Path) -> None:
    model = lowered("straight", form="LeakyRelu")
    counts = Counter(n.op_type for n in model.graph.node)
    assert (counts["LeakyRelu"], counts["GatherElements"], counts["Cast"]) == (1, 0, 0)
    assert optimised(model, tmp_path)["QLinearLeakyRelu"] == 1
    x = np.random.default_rng(1).normal(0, 3, (2, 4, 6, 6)).astype(np.float32)
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None) for name in ("act", "q")
    )
    act, codes = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    ).run(["act", "q"], {"x": x})
    np.testing.assert_array_equal(act, _TABLES["straight"][codes])


@pytest.mark.parametrize(("shape", "convolutions"), [("n,4,6,6", True), ("n,7,5", False), ("n,3", False)])
def test_codes_are_the_table_s(shape: str, convolutions: bool) -> None:
    model = lowered("random", shape=shape, convolutions=convolutions)
    before = "q" if convolutions else "q0"
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None) for name in ("act", before)
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    sizes = [2 if size == "n" else int(size) for size in shape.split(",")]
    x = np.random.default_rng(1).normal(0, 3, sizes).astype(np.float32)
    act, codes = session.run(["act", before], {"x": x})
    assert act.shape == tuple(sizes)
    np.testing.assert_array_equal(act, _TABLES["random"][codes])


@pytest.mark.parametrize(
    ("table", "bounds"),
    [
        (np.arange(256), (0, 255)),
        (np.clip(np.arange(256), 7, 201), (7, 201)),
        (np.arange(255, -1, -1), None),
        (np.full(256, 9), None),
    ],
)
def test_bounds_of_a_table(table: np.ndarray, bounds: tuple[int, int] | None) -> None:
    assert clip_bounds(table.astype(np.uint8)) == bounds


def test_int8_codes_read_the_same_table() -> None:
    model = lowered("random", shape="n,3", convolutions=False, storage="int8")
    model.graph.output.append(onnx.helper.make_tensor_value_info("act", onnx.TensorProto.INT8, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).normal(0, 3, (64, 3)).astype(np.float32)
    (act,) = session.run(["act"], {"x": x})
    codes = np.clip(np.rint(x / np.float32(0.05)) + 120, 0, 255).astype(int)
    np.testing.assert_array_equal(act.astype(int) + 128, _TABLES["random"][codes])
