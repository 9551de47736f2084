"""mixport.arithmetic.integer against ONNX Runtime's fused kernels: every reachable sum, ties and saturation,
tolerance 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from mixport.arithmetic import integer

f32 = np.float32
node = helper.make_node


def run(
    tmp_path: Path,
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, Any],
    feeds: dict[str, np.ndarray],
    output: str,
    *,
    fused: str,
    opset: int = 21,
    elem_type: int = TensorProto.UINT8,
    packed: tuple[onnx.TensorProto, ...] = (),
) -> np.ndarray:
    """Run on ONNX Runtime at its default level, having checked that the graph became the fused operator."""
    initializers = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    inputs = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), [None] * v.ndim)
        for k, v in feeds.items()
    ]
    outputs = [helper.make_tensor_value_info(output, elem_type, None)]
    graph = helper.make_graph(list(nodes), "g", inputs, outputs, [*initializers, *packed])
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10 if opset < 25 else 13
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    operators = [n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert fused in operators, f"expected {fused} in {operators}"
    assert "DequantizeLinear" not in operators
    return session.run(None, feeds)[0]


def parameters(name: str, scale: float, zero_point: int, dtype: type = np.uint8) -> dict[str, Any]:
    return {f"{name}_s": f32(scale), f"{name}_z": dtype(zero_point)}


def dq(name: str) -> onnx.NodeProto:
    return node("DequantizeLinear", [name, f"{name}_s", f"{name}_z"], [f"{name}_f"])


def q(x: str) -> onnx.NodeProto:
    return node("QuantizeLinear", [x, "y_s", "y_z"], ["y"])


#: (x scale, weight scale, y scale): halves put every odd sum on a tie; 1/4 every sum of 2 mod 4; the others
#: lie near ties.
SCALES = {
    "ties-half": (0.5, 1.0, 1.0),
    "ties-quarter": (0.25, 0.5, 0.5),
    "arbitrary": (0.0317, 0.0123, 0.0711),
    "saturating": (0.5, 0.5, 0.015625),
    "tiny": (0.011, 0.0007, 0.9),
}
ZERO_POINTS = [(0, 0), (128, 117), (3, 255)]


def all_pairs() -> np.ndarray:
    """Every pair of 8-bit codes as two channels of one image, uint8 [1, 2, 256, 256]."""
    return np.stack(np.indices((256, 256))).astype(np.uint8)[None]


@pytest.mark.parametrize(("x_zero_point", "y_zero_point"), ZERO_POINTS)
@pytest.mark.parametrize("scales", SCALES.values(), ids=SCALES.keys())
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_convolution_all_pairs(
    tmp_path: Path, scales: tuple[float, float, float], x_zero_point: int, y_zero_point: int, bits: int
) -> None:
    x_scale, w_scale, y_scale = map(f32, scales)
    w = np.array([[1, 1], [1, -2 if bits == 2 else -3], [-1, 0]], np.int8)[:, :, None, None]
    if bits == 8:
        w = np.array([[127, -128], [1, 3], [64, 77]], np.int8)[:, :, None, None]
    w_scales = np.array([w_scale, w_scale, w_scale * f32(1.1)], f32)
    bias = np.array([0, 7, -1234], np.int32)
    constants = {
        **parameters("x", x_scale, x_zero_point),
        **parameters("y", y_scale, y_zero_point),
        "ws": w_scales,
        "b": bias,
        "bs": x_scale * w_scales,
    }
    packed, before = (), []
    if bits == 8:
        constants["w"] = w
    else:
        kind = TensorProto.INT2 if bits == 2 else TensorProto.INT4
        packed = (helper.make_tensor("wp", kind, w.shape, w),)
        before = [node("Cast", ["wp"], ["w"], to=TensorProto.INT8)]
    nodes = [
        *before,
        dq("x"),
        node("DequantizeLinear", ["w", "ws"], ["wf"], axis=0),
        node("DequantizeLinear", ["b", "bs"], ["bf"], axis=0),
        node("Conv", ["x_f", "wf", "bf"], ["c"]),
        q("c"),
    ]
    x = all_pairs()
    got = run(
        tmp_path,
        nodes,
        constants,
        {"x": x},
        "y",
        fused="QLinearConv",
        opset=25 if bits == 2 else 21,
        packed=packed,
    )
    acc = (
        integer.conv_accumulate(x, w, x_zero_point=x_zero_point, strides=(1, 1), pads=(0, 0, 0, 0))
        + bias[:, None, None]
    )
    multiplier = integer.conv_multiplier(x_scale, w_scales, y_scale)[:, None, None]
    expected = integer.requantise(acc, multiplier=multiplier, zero_point=y_zero_point, qmin=0, qmax=255)
    if scales == SCALES["ties-half"]:
        assert np.count_nonzero(acc[:, 0] * float(multiplier[0, 0, 0]) % 1 == 0.5) > 10_000
    np.testing.assert_array_equal(expected, got)


@pytest.mark.parametrize("options", [
    {"strides": [2, 1], "pads": [1, 0, 2, 1]},
    {"dilations": [2, 3], "pads": [2, 2, 2, 2]},
    {"group": 2, "pads": [1, 1, 1, 1]},
    {"group": 4, "strides": [2, 2], "pads": [0, 1, 1, 0]},
], ids=["strides-pads", "dilations", "groups", "depthwise"])  # fmt: skip
@pytest.mark.parametrize("x_zero_point", [0, 131])
def test_convolution_geometry(tmp_path: Path, options: dict[str, Any], x_zero_point: int) -> None:
    rng = np.random.default_rng(3)
    groups = options.get("group", 1)
    x = rng.integers(0, 256, (3, 4, 9, 10)).astype(np.uint8)
    w = rng.integers(-127, 128, (8, 4 // groups, 3, 2)).astype(np.int8)
    constants = {
        **parameters("x", 0.5, x_zero_point),
        **parameters("y", 64.0, 120),
        "w": w,
        "ws": np.full(8, 0.5, f32),
    }
    nodes = [
        dq("x"),
        node("DequantizeLinear", ["w", "ws"], ["wf"], axis=0),
        node("Conv", ["x_f", "wf"], ["c"], **options),
        q("c"),
    ]
    got = run(tmp_path, nodes, constants, {"x": x}, "y", fused="QLinearConv")
    acc = integer.conv_accumulate(
        x,
        w,
        x_zero_point=x_zero_point,
        strides=tuple(options.get("strides", (1, 1))),
        pads=tuple(options.get("pads", (0, 0, 0, 0))),
        dilations=tuple(options.get("dilations", (1, 1))),
        groups=groups,
    )
    expected = integer.requantise(
        acc, multiplier=integer.conv_multiplier(0.5, 0.5, 64.0), zero_point=120, qmin=0, qmax=255
    )
    np.testing.assert_array_equal(expected, got)


@pytest.mark.parametrize("scales", SCALES.values(), ids=SCALES.keys())
@pytest.mark.parametrize("quantised", [True, False], ids=["codes", "floats"])
def test_gemm_all_pairs(tmp_path: Path, scales: tuple[float, float, float], quantised: bool) -> None:
    x_scale, w_scale, y_scale = map(f32, scales)
    w = np.array([[1, 1], [127, -128], [3, -5]], np.int8)
    w_scales = np.array([w_scale, w_scale * f32(0.37), w_scale], f32)
    bias = np.array([1, -20000, 0], np.int32)
    constants = {
        **parameters("x", x_scale, 128),
        **parameters("y", y_scale, 119),
        "w": w,
        "ws": w_scales,
        "wz": np.zeros(3, np.int8),
        "b": bias,
        "bs": x_scale * w_scales,
    }
    nodes = [
        dq("x"),
        node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], axis=0),
        node("DequantizeLinear", ["b", "bs"], ["bf"], axis=0),
        node("Gemm", ["x_f", "wf", "bf"], ["g"], transB=1),
    ]
    x = np.ascontiguousarray(all_pairs().reshape(2, -1).T)
    acc = integer.matmul_accumulate(x, w.T, a_zero_point=128) + bias
    if quantised:
        got = run(tmp_path, [*nodes, q("g")], constants, {"x": x}, "y", fused="QGemm")
        multiplier = integer.conv_multiplier(x_scale, w_scales, y_scale)
        expected = integer.requantise(acc, multiplier=multiplier, zero_point=119, qmin=0, qmax=255)
    else:
        got = run(tmp_path, nodes, constants, {"x": x}, "g", fused="QGemm", elem_type=TensorProto.FLOAT)
        expected = acc.astype(f32) * (x_scale * w_scales)
    np.testing.assert_array_equal(expected, got)


@pytest.mark.parametrize("scales", SCALES.values(), ids=SCALES.keys())
@pytest.mark.parametrize("quantised", [True, False], ids=["codes", "floats"])
def test_matmul_of_two_code_tensors(
    tmp_path: Path, scales: tuple[float, float, float], quantised: bool
) -> None:
    rng = np.random.default_rng(5)
    a_scale, b_scale, y_scale = map(f32, scales)
    # Inner size 2 with extreme codes in front reaches both ends; the rest is random.
    a = rng.integers(0, 256, (2, 3, 64, 2)).astype(np.uint8)
    b = rng.integers(0, 256, (2, 3, 2, 96)).astype(np.uint8)
    a[..., :2, :], b[..., :2] = 255, 0
    constants = {
        **parameters("a", a_scale, 128),
        **parameters("b", b_scale, 101),
        **parameters("y", y_scale, 77),
    }
    nodes = [dq("a"), dq("b"), node("MatMul", ["a_f", "b_f"], ["m"])]
    acc = integer.matmul_accumulate(a, b, a_zero_point=128, b_zero_point=101)
    if quantised:
        got = run(tmp_path, [*nodes, q("m")], constants, {"a": a, "b": b}, "y", fused="QLinearMatMul")
        multiplier = integer.conv_multiplier(a_scale, b_scale, y_scale)
        expected = integer.requantise(acc, multiplier=multiplier, zero_point=77, qmin=0, qmax=255)
    else:
        got = run(
            tmp_path,
            nodes,
            constants,
            {"a": a, "b": b},
            "m",
            fused="MatMulIntegerToFloat",
            elem_type=TensorProto.FLOAT,
        )
        expected = acc.astype(f32) * (a_scale * b_scale)
    np.testing.assert_array_equal(expected, got)


@pytest.mark.parametrize(("a_ratio", "b_ratio"), [(1, 1), (3, 1), (2, 3), (1, 17)])
@pytest.mark.parametrize(
    ("a_zero_point", "b_zero_point", "zero_point"), [(0, 0, 0), (128, 3, 7), (255, 131, 117)]
)
@pytest.mark.parametrize("y_scale", [0.125, 0.031707763671875])
@pytest.mark.parametrize("relu", [False, True])
def test_add_all_pairs(
    tmp_path: Path,
    a_ratio: int,
    b_ratio: int,
    a_zero_point: int,
    b_zero_point: int,
    zero_point: int,
    y_scale: float,
    relu: bool,
) -> None:
    if relu and zero_point:
        zero_point = 0
    scales = f32(a_ratio) * f32(y_scale), f32(b_ratio) * f32(y_scale)
    assert [integer.add_ratio(float(s), y_scale) for s in scales] == [a_ratio, b_ratio]
    constants = {
        **parameters("a", scales[0], a_zero_point),
        **parameters("b", scales[1], b_zero_point),
        **parameters("y", y_scale, zero_point),
    }
    activation = [node("Relu", ["s"], ["r"]), q("r")] if relu else [q("s")]
    nodes = [dq("a"), dq("b"), node("Add", ["a_f", "b_f"], ["s"]), *activation]
    a, b = np.ascontiguousarray(all_pairs()[:, 0]), np.ascontiguousarray(all_pairs()[:, 1])
    got = run(tmp_path, nodes, constants, {"a": a, "b": b}, "y", fused="QLinearAdd")
    expected = integer.add(
        a,
        b,
        a_zero_point=a_zero_point,
        b_zero_point=b_zero_point,
        a_ratio=a_ratio,
        b_ratio=b_ratio,
        zero_point=zero_point,
        qmin=0,
        qmax=255,
    )
    np.testing.assert_array_equal(expected, got)


@pytest.mark.parametrize(
    ("a_zero_point", "b_zero_point", "zero_point"), [(0, 0, 0), (128, 3, 7), (10, 0, 13)]
)
@pytest.mark.parametrize(
    "scales", [(0.5, 0.5, 0.5), (0.05, 0.25, 2.5), (0.05, 1 / 255, 0.05), (0.5, 0.5, 25.0)]
)
@pytest.mark.parametrize("broadcast", ["none", "left", "right"])
def test_multiply_all_pairs(
    tmp_path: Path,
    a_zero_point: int,
    b_zero_point: int,
    zero_point: int,
    scales: tuple[float, float, float],
    broadcast: str,
) -> None:
    a, b = np.ascontiguousarray(all_pairs()[:, 0]), np.ascontiguousarray(all_pairs()[:, 1])
    a = a[:, :, :1] if broadcast == "left" else a
    b = b[:, :1, :] if broadcast == "right" else b
    constants = {
        **parameters("a", scales[0], a_zero_point),
        **parameters("b", scales[1], b_zero_point),
        **parameters("y", scales[2], zero_point),
    }
    nodes = [dq("a"), dq("b"), node("Mul", ["a_f", "b_f"], ["p"]), q("p")]
    got = run(
        tmp_path,
        nodes,
        constants,
        {"a": np.ascontiguousarray(a), "b": np.ascontiguousarray(b)},
        "y",
        fused="QLinearMul",
    )
    expected = integer.multiply(
        a,
        b,
        a_zero_point=a_zero_point,
        b_zero_point=b_zero_point,
        multiplier=integer.conv_multiplier(*scales),
        zero_point=zero_point,
        qmin=0,
        qmax=255,
    )
    np.testing.assert_array_equal(expected, got)


@pytest.mark.parametrize(("x_zero_point", "y_zero_point"), ZERO_POINTS)
@pytest.mark.parametrize(
    ("size", "scales"),
    [((2, 2), (0.5, 0.25)), ((7, 7), (0.05, 0.021)), ((8, 8), (0.5, 0.5)), ((5, 3), (0.3, 0.3))],
)
def test_global_average_pool_every_sum(
    tmp_path: Path, size: tuple[int, int], scales: tuple[float, float], x_zero_point: int, y_zero_point: int
) -> None:
    count = size[0] * size[1]
    sums = np.arange(0, 255 * count + 1)
    # One channel for every reachable sum: as many equal codes as possible, and the rest spread over the first
    # positions.
    base, rest = np.divmod(sums, count)
    x = (base[:, None] + (np.arange(count)[None, :] < rest[:, None])).astype(np.uint8).reshape(1, -1, *size)
    constants = {**parameters("x", scales[0], x_zero_point), **parameters("y", scales[1], y_zero_point)}
    nodes = [dq("x"), node("GlobalAveragePool", ["x_f"], ["p"]), q("p")]
    got = run(tmp_path, nodes, constants, {"x": x}, "y", fused="QLinearGlobalAveragePool")
    acc = integer.spatial_sum(x, x_zero_point=x_zero_point)
    expected = integer.requantise(
        acc,
        multiplier=integer.average_multiplier(scales[0], scales[1], count),
        zero_point=y_zero_point,
        qmin=0,
        qmax=255,
    )
    np.testing.assert_array_equal(expected, got)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
@pytest.mark.parametrize("scale", [0.5, 0.03, 1 / 255])
def test_quantise_ties_and_huge_values(dtype: type, scale: float) -> None:
    limits = np.iinfo(dtype)
    zero_point = 128 if dtype is np.uint8 else -3
    k = np.arange(limits.min - zero_point - 3, limits.max - zero_point + 4, dtype=np.float64)
    ties = ((k + 0.5) * np.float64(f32(scale))).astype(f32)
    x = np.concatenate(
        [
            ties,
            np.nextafter(ties, f32(np.inf)),
            np.nextafter(ties, f32(-np.inf)),
            f32([1e30, -1e30, 0.0, -0.0]),
        ]
    )
    graph = helper.make_graph(
        [node("QuantizeLinear", ["x", "s", "z"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), [None])],
        [numpy_helper.from_array(f32(scale), "s"), numpy_helper.from_array(dtype(zero_point), "z")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    got = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )[0]
    expected = integer.quantise(
        x, scale=f32(scale), zero_point=zero_point, qmin=int(limits.min), qmax=int(limits.max)
    )
    np.testing.assert_array_equal(expected, got)


def test_lookup_every_code(tmp_path: Path) -> None:
    table = np.random.default_rng(7).integers(0, 256, 256).astype(np.uint8)
    codes = np.arange(256, dtype=np.uint8)[None]
    nodes = [node("Cast", ["x"], ["i"], to=TensorProto.INT32), node("Gather", ["t", "i"], ["y"])]
    got = run(tmp_path, nodes, {"t": table}, {"x": codes}, "y", fused="Gather")
    np.testing.assert_array_equal(integer.lookup(codes, table=table), got)
