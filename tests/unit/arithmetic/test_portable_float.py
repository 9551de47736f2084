"""Softmax and LayerNorm of IEEE operations: close to the real functions, and the same in NumPy, torch and
ONNX Runtime.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixport.arithmetic import portable_float as portable
from mixport.arithmetic.torch_ops import OPS
from mixport.lower.onnx_graph import initializer
from mixport.lower.operators.layer_norm import expand_layer_norm
from mixport.lower.operators.softmax import expand_softmax
from mixport.validate.interpreter.interpreter import Interpreter

f32 = np.float32


def softmax64(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def scores(kind: str, length: int) -> np.ndarray:
    rng = np.random.default_rng(length)
    rows = {
        "random": rng.normal(0, 4, (7, length)),
        "equal": np.zeros((7, length)),
        "one stands out": np.where(np.arange(length) == length // 2, 40.0, -40.0) + np.zeros((7, 1)),
        "masked": np.where(rng.random((7, length)) < 0.5, -1e9, rng.normal(0, 1, (7, length))),
        "all within an ulp": 3.0 + rng.integers(0, 3, (7, length)) * 2.0**-22,
    }
    return rows[kind].astype(f32)


KINDS = ("random", "equal", "one stands out", "masked", "all within an ulp")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 2, 49, 197, 256, 257, 1025])
def test_softmax_is_close_to_the_function(kind: str, length: int) -> None:
    x = scores(kind, length)
    found, wanted = portable.softmax(x, bits=portable.softmax_bits(length)), softmax64(x)
    # Each numerator is wrong by half a step at most, and by 1e-4 of the largest one: see portable.softmax.
    step = 2.0 ** -portable.softmax_bits(length)
    assert np.abs(found - wanted).max() <= (1e-4 + step * (1 + length * wanted.max())) * wanted.max() * 2
    assert found.dtype == f32


def test_the_sum_of_the_numerators_stays_exact() -> None:
    for length in range(1, 1 << 16, 97):
        bits = portable.softmax_bits(length)
        assert length * 2**bits <= portable.FLOAT32_INTEGERS
    with pytest.raises(ValueError, match="65537"):
        portable.softmax_bits(65537)


def layer_norm64(values: np.ndarray, weight: np.ndarray, bias: np.ndarray, epsilon: float) -> np.ndarray:
    x = values.astype(np.float64)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon) * weight + bias


def normalised(kind: str, length: int) -> dict[str, Any]:
    rng = np.random.default_rng(length)
    codes = {
        "int16": rng.normal(300, 4000, (5, length)).round().clip(-32768, 32767).astype(np.int16),
        "extremes": np.where(np.arange(length) % 2 == 0, -32768, 32767).astype(np.int16)[None].repeat(5, 0),
        "constant": np.full((5, length), 32767, np.int16),
        "one apart": (np.arange(length) == 0).astype(np.int16)[None].repeat(5, 0) + np.int16(32000),
        "uint8": rng.integers(0, 256, (5, length)).astype(np.uint8),
    }[kind]
    weight, bias = rng.normal(1, 0.3, length).astype(f32), rng.normal(0, 0.3, length).astype(f32)
    return {"codes": codes, "weight": weight, "bias": bias, "epsilon": 1e-6, "scale": float(f32(0.00037))}


NORMS = ("int16", "extremes", "constant", "one apart", "uint8")


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("length", [2, 192, 768, 1024])
def test_layer_norm_is_close_to_the_function(kind: str, length: int) -> None:
    case = normalised(kind, length)
    values = case["codes"].astype(np.float64) * case["scale"]
    wanted = layer_norm64(values, case["weight"], case["bias"], case["epsilon"])
    # The mean is rounded to an integer (16 bits) or to float32 (8 bits: 2^-16 of a code), everything else to
    # 2^-24 of the result.
    factor = case["scale"] / np.sqrt(values.var(-1, keepdims=True) + case["epsilon"])
    half_step = 0.5 if case["codes"].dtype == np.int16 else 2.0**-16
    allowed = np.abs(case["weight"]) * (factor * half_step + np.abs(wanted - case["bias"]) * 2.0**-21) + 1e-6
    assert np.all(np.abs(portable.layer_norm(**case) - wanted) <= allowed)


def test_the_mean_of_wide_codes_is_the_nearest_integer_and_that_of_bytes_is_not() -> None:
    """Codes 0, 0, 1: mean 1/3. S = Q = 1 and D = 3, so factor = 3 / sqrt(2) with next to no epsilon."""
    factor = f32(3.0 / np.sqrt(2.0))
    rest: dict[str, Any] = {"weight": np.ones(3, f32), "bias": np.zeros(3, f32), "epsilon": 0.0, "scale": 1.0}
    for dtype, mean in ((np.int16, f32(0)), (np.uint8, f32(1 / 3))):
        wanted = (np.array([[0, 0, 1]], f32) - mean) * factor
        np.testing.assert_array_equal(portable.layer_norm(np.array([[0, 0, 1]], dtype), **rest), wanted)


@pytest.mark.parametrize(
    ("length", "storage", "fits"),
    [(258, "uint8", True), (259, "uint8", False), (1024, "int8", True), (2, "int16", False)],
)
def test_squares_that_float32_adds_up_exactly(length: int, storage: str, fits: bool) -> None:
    """258 * 255^2 = 16,776,450 and 1024 * 128^2 = 2^24 are the last below or at 2^24."""
    assert portable.sums_fit_float32(length, storage=storage) is fits


@pytest.mark.parametrize(("epsilon", "scale"), [(0.0, 0.1), (1e-12, 1e30), (1e-30, 1e6)])
def test_equal_codes_are_normalised_to_the_bias_whatever_epsilon_is(epsilon: float, scale: float) -> None:
    """0 / 0 would be NaN, whose 16-bit code is 0 in WebAssembly and -32768 elsewhere (measured)."""
    case = normalised("constant", 5) | {"epsilon": epsilon, "scale": float(f32(scale))}
    np.testing.assert_array_equal(
        portable.layer_norm(**case), np.broadcast_to(case["bias"], case["codes"].shape)
    )


# -- three executions, one result ----------------------------------------------------------------------------


def file_of(
    build: Callable[[ir.Graph, ir.Value], None], shape: tuple[int | str, ...], dtype: ir.DataType
) -> Any:
    """A file of one expanded placeholder."""
    x = ir.Value(name="input", type=ir.TensorType(dtype), shape=ir.Shape(["n", *shape[1:]]))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 21}, name="g")
    build(graph, x)
    for value in graph.outputs:
        value.name, value.type = "output", ir.TensorType(ir.DataType.FLOAT)
    return ir.to_proto(ir.Model(graph, ir_version=10))


def softmax_file(x: np.ndarray, bits: int) -> Any:
    def build(graph: ir.Graph, source: ir.Value) -> None:
        old = ir.Node(
            "mixport", "Softmax", [source], [ir.AttrInt64("bits", bits)], num_outputs=1, name="attn"
        )
        graph.append(old)
        graph.outputs.append(old.outputs[0])
        expand_softmax(graph, old)
        graph.remove(old, safe=True)

    return file_of(build, x.shape, ir.DataType.FLOAT)


def layer_norm_file(case: dict[str, Any], *, shape: tuple[int | str, ...] | None = None) -> Any:
    def build(graph: ir.Graph, source: ir.Value) -> None:
        constants = [initializer(graph, name, case[name]) for name in ("weight", "bias")]
        attributes = ir.convenience.convert_attributes(
            {
                "name": "norm",
                "epsilon": repr(case["epsilon"]),
                "scale": case["scale"],
                "zero_point": 0,
                "storage": str(case["codes"].dtype),
            }
        )
        old = ir.Node("mixport", "LayerNorm", [source, *constants], attributes, num_outputs=1, name="norm")
        graph.append(old)
        graph.outputs.append(old.outputs[0])
        expand_layer_norm(graph, old)
        graph.remove(old, safe=True)

    return file_of(build, shape or case["codes"].shape, ir.DataType.FLOAT)


def runtime(model: Any, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x})[0]


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype == f32 and np.array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 49, 197, 577])
def test_softmax_has_the_same_bits_everywhere(kind: str, length: int) -> None:
    x = scores(kind, length)
    bits = portable.softmax_bits(length)
    wanted, model = portable.softmax(x, bits=bits), softmax_file(x, bits)
    interpreter = Interpreter(model)
    assert interpreter.island_names == ()
    assert same(interpreter.run_feeds({"input": x}).outputs["output"], wanted)
    assert same(runtime(model, x), wanted)
    assert same(OPS.softmax(torch.from_numpy(x), bits).numpy(), wanted)


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("length", [2, 192, 768])
@pytest.mark.parametrize("biased", [True, False])
def test_layer_norm_has_the_same_bits_everywhere(kind: str, length: int, biased: bool) -> None:
    case = normalised(kind, length)
    if not biased:
        case["bias"] = np.zeros(length, f32)
    codes, scale = case["codes"], case["scale"]
    wanted, model = portable.layer_norm(**case), layer_norm_file(case)
    x = codes.astype(f32) * f32(scale)
    interpreter = Interpreter(model)
    assert interpreter.island_names == ()
    assert same(interpreter.run_feeds({"input": x}).outputs["output"], wanted)
    assert same(runtime(model, x), wanted)
    weight, bias = torch.from_numpy(case["weight"]), torch.from_numpy(case["bias"])
    assert same(
        OPS.layer_norm(
            torch.from_numpy(x), weight, bias, "norm", case["epsilon"], scale, 0, str(codes.dtype)
        ).numpy(),
        wanted,
    )


@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (4, 5, 6), (4, 6)])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8])
def test_layer_norm_keeps_its_shape_and_treats_every_row_alone(shape: tuple[int, ...], dtype: Any) -> None:
    codes = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)
    case: dict[str, Any] = {
        "codes": codes,
        "weight": np.arange(1, 7, dtype=f32),
        "bias": np.zeros(6, f32),
        "epsilon": 1e-6,
        "scale": 0.5,
    }
    rows = [portable.layer_norm(**case | {"codes": row[None]}) for row in codes.reshape(-1, 6)]
    found = runtime(layer_norm_file(case), codes.astype(f32) * f32(0.5))
    assert same(found, np.concatenate(rows).reshape(shape))


def test_layer_norm_of_unknown_sizes_takes_its_shape_from_its_input() -> None:
    case = normalised("int16", 6)
    model = layer_norm_file(case, shape=("n", "rows", 6))
    x = (case["codes"].astype(f32) * f32(case["scale"])).reshape(1, 5, 6)
    assert same(runtime(model, x), portable.layer_norm(**case)[None])


def test_passes_of_a_layer_norm_of_wide_codes() -> None:
    """Over the whole tensor: Cast, a product and two sums in double; one DequantizeLinear in place of Cast,
    Sub and Mul; Mul by gamma.
    """
    case = normalised("int16", 192)
    case["bias"] = np.zeros(192, f32)
    operators = Counter(node.op_type for node in layer_norm_file(case).graph.node)
    row_operators = Counter(
        {"Mul": 2, "Sub": 1, "Add": 1, "Sqrt": 1, "Div": 1, "Cast": 2, "QuantizeLinear": 1}
    )
    assert operators - row_operators == Counter(
        {"QuantizeLinear": 1, "Cast": 1, "ReduceSum": 2, "Mul": 2, "DequantizeLinear": 1}
    )


@pytest.mark.parametrize(
    ("shape", "together"),
    [((3, 56, 56, 40), 16), ((3, 49, 96), 7), ((3, 196, 129), 1), ((3, 40), 1), ((3, 8, 1024), 1)],
)
@pytest.mark.parametrize("dtype", [np.int16, np.uint8])
def test_short_rows_are_scaled_several_at_once(shape: tuple[int, ...], together: int, dtype: Any) -> None:
    """16 * 40 and 7 * 96 values are the most below 1024 that divide the 3136 and 49 rows of an image; 129 are
    long enough alone.
    """
    rng, length = np.random.default_rng(0), shape[-1]
    codes = rng.integers(0, 256, shape).astype(dtype)
    weight, bias = rng.normal(1, 0.3, length).astype(f32), rng.normal(0, 0.3, length).astype(f32)
    case: dict[str, Any] = {"codes": codes, "weight": weight, "bias": bias, "epsilon": 1e-6, "scale": 0.5}
    model = layer_norm_file(case)
    sizes = [
        tuple(tensor.dims) for tensor in model.graph.initializer if tensor.name in {"norm/gamma", "norm/beta"}
    ]
    assert sizes == [(length * together,)] * 2
    assert same(runtime(model, codes.astype(f32) * f32(0.5)), portable.layer_norm(**case))


def test_a_weight_of_ones_is_not_multiplied_by() -> None:
    case = normalised("int16", 40)
    case |= {"weight": np.ones(40, f32), "bias": np.zeros(40, f32)}
    model = layer_norm_file(case)
    assert Counter(node.op_type for node in model.graph.node)["Mul"] == 3  # squares of codes, D Q and S^2
    assert same(runtime(model, case["codes"].astype(f32) * f32(case["scale"])), portable.layer_norm(**case))


@pytest.mark.parametrize(("length", "casts_to_double"), [(258, 2), (259, 1)])
def test_short_rows_of_bytes_are_summed_in_float32(length: int, casts_to_double: int) -> None:
    """Two sums a row are cast to double, or else every code."""
    casts = [
        node.attribute[0].i
        for node in layer_norm_file(normalised("uint8", length)).graph.node
        if node.op_type == "Cast"
    ]
    assert casts.count(ir.DataType.DOUBLE) == casts_to_double


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-60, 60, width=32), min_size=1, max_size=40))
def test_softmax_of_any_scores_adds_up_and_keeps_their_order(values: list[float]) -> None:
    x = np.asarray([values], f32)
    found = portable.softmax(x, bits=16)[0]
    assert abs(float(found.sum(dtype=np.float64)) - 1.0) < 1e-5
    order = np.argsort(x[0], kind="stable")
    assert np.all(np.diff(found[order]) >= 0)
    assert same(OPS.softmax(torch.from_numpy(x), 16).numpy()[0], found)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-32768, 32767), min_size=2, max_size=64), st.floats(2.0**-20, 1.0, width=32))
def test_layer_norm_of_any_codes_is_the_same_in_torch(codes: list[int], scale: float) -> None:
    array = np.asarray([codes], np.int16)
    ones, zeros = np.ones(array.shape[1], f32), np.zeros(array.shape[1], f32)
    wanted = portable.layer_norm(array, weight=ones, bias=zeros, epsilon=1e-5, scale=scale)
    x = torch.from_numpy(array.astype(f32) * f32(scale))
    found = OPS.layer_norm(
        x, torch.from_numpy(ones), torch.from_numpy(zeros), "norm", 1e-5, scale, 0, "int16"
    )
    assert same(found.numpy(), wanted)
    assert np.isfinite(wanted).all()
