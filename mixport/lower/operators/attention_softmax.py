"""Numerators of a softmax as nodes, between the codes of the scores and their own quantiser:
mixport.arithmetic.attention_softmax.

One DequantizeLinear turns codes into exponents, another the largest code of each row, which has a column of
its own:

    Exp(DequantizeLinear(c; t, z) - DequantizeLinear(ReduceMax(c); t, z))

Both read codes with another scale than they were made with: the scores' factor is part of t, and costs
nothing.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mixport.lower.onnx_graph import UNDOES, initializer, mark, node, replace


def expand_numerators(graph: ir.Graph, old: ir.Node) -> None:
    """mixport::Numerators. Its input is turned back into the codes it was dequantised from."""
    attributes = old.attributes
    x, name = old.inputs[0], attributes["name"].as_string()
    scale = initializer(graph, f"{name}/in_scale", np.asarray(attributes["scale"].as_float(), np.float32))
    zero = attributes["zero_point"].as_int()
    storage = attributes["storage"].as_string()
    zero_point = initializer(graph, f"{storage}/{zero}", np.asarray(zero, np.dtype(storage)))
    step = initializer(graph, f"{name}/step", np.asarray(attributes["step"].as_float(), np.float32))
    last = initializer(graph, "axes/-1", np.asarray([-1], np.int64))

    made: list[ir.Node] = []

    def emit(op_type: str, *inputs: ir.Value | None, **extra: int) -> ir.Value:
        label = f"{name}/{len(made)}.{op_type}"
        made.append(node(op_type, list(inputs), output=label, name=label, **extra))
        return made[-1].outputs[0]

    codes = emit("QuantizeLinear", x, scale, zero_point)
    mark(codes, UNDOES, name)
    exponents = emit("DequantizeLinear", codes, step, zero_point)
    largest = emit("DequantizeLinear", emit("ReduceMax", codes, last, keepdims=1), step, zero_point)
    result = emit("Exp", emit("Sub", exponents, largest))
    graph.insert_before(old, made)
    replace(old.outputs[0], result)


def gives_exponents(dequantiser: ir.Node) -> bool:
    """True for a DequantizeLinear that a softmax reads its scores with: the step is its own."""
    readers = dequantiser.outputs[0].consumers()
    return bool(readers) and all(
        reader.op_type == "Sub" and [after.op_type for after in reader.outputs[0].consumers()] == ["Exp"]
        for reader in readers
    )
