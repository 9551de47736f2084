"""One softmax or LayerNorm twice, as a file each: in its portable form, and as the runtime's own operator.
For timing them.
"""

# onnx-ir is typed in part.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from mixport.arithmetic.portable_float import softmax_bits
from mixport.lower.onnx_graph import initializer, node
from mixport.lower.operators.attention_softmax import expand_numerators
from mixport.lower.operators.layer_norm import expand_layer_norm
from mixport.lower.operators.softmax import expand_softmax
from mixport.records.quantized_model import CompositeForm

_SCALE = 2.0**-12
"""Of the int16 codes: what a normalisation reads does not change how long it takes."""

_STEP = 2.0**-4
"""Of the 8-bit scores, and of their exponents."""

_WIDTH = 32
"""Of the values that attention weighs."""

_Build = Callable[[ir.Graph, ir.Value, int], ir.Value]


def write_pair(form: CompositeForm, folder: Path) -> tuple[Path, Path]:
    """Write `portable.onnx` and `own.onnx`: input and output float32, a leading axis of 1 before the form's
    shape.

    Both LayerNorm files start with the same QuantizeLinear: in a model the codes are there already.

    Args:
        form: kind and shape.
        folder: existing folder.
    """
    builders: dict[str, tuple[_Build, _Build]] = {
        "softmax": (_portable_softmax, _own_softmax),
        "attention": (_portable_attention, _own_attention),
        "layer_norm": (_portable_layer_norm, _own_layer_norm),
    }
    paths = folder / "portable.onnx", folder / "own.onnx"
    for path, build in zip(paths, builders[form.kind], strict=True):
        x = ir.Value(name="input", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, *form.shape]))
        graph = ir.Graph([x], [], nodes=[], opset_imports={"": 21}, name="form")
        y = build(graph, x, form.shape[-1])
        y.name, y.type = "output", ir.TensorType(ir.DataType.FLOAT)
        graph.outputs.append(y)
        ir.save(ir.Model(graph, ir_version=10), path)
    return paths


def _portable_softmax(graph: ir.Graph, x: ir.Value, length: int) -> ir.Value:
    return _expanded(graph, "Softmax", [x], {"bits": softmax_bits(length)}, expand_softmax)


def _own_softmax(graph: ir.Graph, x: ir.Value, length: int) -> ir.Value:
    return _append(graph, node("Softmax", [x], output="y", axis=-1))


def _portable_attention(graph: ir.Graph, x: ir.Value, length: int) -> ir.Value:
    # The expansion quantises its input itself: 8-bit scores instead of floats are part of what it costs.
    attributes: dict[str, Any] = {
        "name": "softmax",
        "scale": _STEP,
        "zero_point": 128,
        "step": _STEP,
        "storage": "uint8",
    }
    numerators = _quantised(graph, _expanded(graph, "Numerators", [x], attributes, expand_numerators))
    axes = initializer(graph, "axes/-1", np.asarray([-1], np.int64))
    total = _append(graph, node("ReduceSum", [numerators, axes], output="total", keepdims=1))
    return _append(graph, node("Div", [_product(graph, numerators, length), total], output="y"))


def _own_attention(graph: ir.Graph, x: ir.Value, length: int) -> ir.Value:
    return _product(graph, _quantised(graph, _own_softmax(graph, x, length)), length)


def _quantised(graph: ir.Graph, x: ir.Value) -> ir.Value:
    scale, zero_point = (
        initializer(graph, "unit", np.asarray(2.0**-8, np.float32)),
        initializer(graph, "uint8/0", np.asarray(0, np.uint8)),
    )
    codes = _append(graph, node("QuantizeLinear", [x, scale, zero_point], output="numerators"))
    return _append(graph, node("DequantizeLinear", [codes, scale, zero_point], output="weights"))


def _product(graph: ir.Graph, weights: ir.Value, length: int) -> ir.Value:
    codes = np.random.default_rng(0).integers(0, 256, (length, _WIDTH)).astype(np.uint8)
    scale, zero_point = (
        initializer(graph, "v/scale", np.asarray(2.0**-7, np.float32)),
        initializer(graph, "v/zero", np.asarray(128, np.uint8)),
    )
    v = _append(
        graph, node("DequantizeLinear", [initializer(graph, "v", codes), scale, zero_point], output="values")
    )
    return _append(graph, node("MatMul", [weights, v], output="product"))


def _portable_layer_norm(graph: ir.Graph, x: ir.Value, length: int) -> ir.Value:
    # The expansion quantises its input itself.
    attributes: dict[str, Any] = {
        "name": "norm",
        "epsilon": "1e-06",
        "scale": _SCALE,
        "zero_point": 0,
        "storage": "int16",
    }
    return _expanded(graph, "LayerNorm", [x, *_constants(graph, length)], attributes, expand_layer_norm)


def _own_layer_norm(graph: ir.Graph, x: ir.Value, length: int) -> ir.Value:
    scale, zero_point = (
        initializer(graph, "s", np.asarray(_SCALE, np.float32)),
        initializer(graph, "z", np.asarray(0, np.int16)),
    )
    codes = _append(graph, node("QuantizeLinear", [x, scale, zero_point], output="codes"))
    values = _append(graph, node("DequantizeLinear", [codes, scale, zero_point], output="values"))
    return _append(
        graph, node("LayerNormalization", [values, *_constants(graph, length)], output="y", epsilon=1e-6)
    )


def _expanded(
    graph: ir.Graph,
    op_type: str,
    inputs: list[ir.Value],
    attributes: dict[str, Any],
    expand: Callable[[ir.Graph, ir.Node], None],
) -> ir.Value:
    old = ir.Node(
        "mixport", op_type, inputs, ir.convenience.convert_attributes(attributes), num_outputs=1, name="form"
    )
    old.outputs[0].name = "y"
    graph.append(old)
    graph.outputs.append(old.outputs[0])
    expand(graph, old)
    graph.remove(old, safe=True)
    return graph.outputs.pop()


def _append(graph: ir.Graph, made: ir.Node) -> ir.Value:
    graph.append(made)
    return made.outputs[0]


def _constants(graph: ir.Graph, length: int) -> list[ir.Value]:
    return [
        initializer(graph, name, np.full(length, value, np.float32))
        for name, value in (("gamma", 1.5), ("beta", 0.25))
    ]
