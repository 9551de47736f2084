"""Layers that stay in float behind codes keep their weights: ONNX Runtime would round them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from mixport.lower.onnx_graph import constant_of, initializer, is_op, node

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm"})
_FACTOR = np.float32(2.0)
"""A power of two, so that twice the input times half the weight is the same in every float; a multiplication
by 1 would be removed.
"""


class KeepFloatWeightsPass(InPlacePass):
    """Layer with float weights -> twice its input, half its weights.

    ONNX Runtime 1.32 rounds the float weights of a Conv, ConvTranspose or Gemm that reads a DequantizeLinear
    to 8 bits, from optimisation level basic on (WeightBiasQuantization;
    `findings/onnxruntime-rounds-float-weights.sh`). It does not look past a multiplication.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite each one that stands behind another node; what reads the image as it is has no codes in
        front.
        """
        modified = False
        for n in list(model.graph):
            if not _keeps_float_weights(n):
                continue
            source, weight = n.inputs[0], n.inputs[1]
            values = constant_of(weight)
            assert source is not None and weight is not None and values is not None
            name = f"{n.outputs[0].name}/twice"
            twice = node(
                "Mul",
                [source, initializer(model.graph, f"float32/{_FACTOR!r}", np.asarray(_FACTOR))],
                output=name,
                name=name,
            )
            model.graph.insert_before(n, twice)
            n.replace_input_with(0, twice.outputs[0])
            n.replace_input_with(
                1, initializer(model.graph, f"{weight.name}/half", (values / _FACTOR).astype(np.float32))
            )
            modified = True
        return PassResult(model, modified=modified)

    def ensures(self, model: ir.Model) -> None:
        """No layer with float weights reads a DequantizeLinear directly."""
        left = [
            n.name for n in model.graph if _keeps_float_weights(n) and is_op(n.inputs[0], "DequantizeLinear")
        ]
        if left:
            raise ir.passes.PostconditionError(f"float weights directly behind codes: {left[:3]}")


def _keeps_float_weights(n: ir.Node) -> bool:
    if n.op_type not in _LAYERS:
        return False
    source, values = n.inputs[0], constant_of(n.inputs[1])
    is_layer = values is not None and values.dtype == np.float32
    return is_layer and source is not None and source.producer() is not None and not is_op(source, "Mul")
