"""16-bit codes of a product: the integer kernels give 8-bit codes or floats, so the kernel has to give
floats.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from mixport.lower.onnx_graph import constant_of, initializer, is_op, made_by, node, quantization_of

_FACTOR = np.float32(2.0)
"""A power of two: (2 x) / (2 s) is x / s in every float type. ONNX Runtime would remove a multiplication by
1.
"""


class WideCodesPass(InPlacePass):
    """Gemm or MatMul -> QuantizeLinear(int16): a multiplication in between, undone by the scale.

    Without it ONNX Runtime 1.31 leaves the product in float: its fused form wants input and output codes of
    one type.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite each such pair."""
        modified = False
        for n in list(model.graph):
            if not _is_wide_output(n):
                continue
            source, scale = n.inputs[0], constant_of(n.inputs[1])
            assert source is not None and scale is not None
            name = f"{n.outputs[0].name}/twice"
            factor = initializer(model.graph, f"float32/{_FACTOR!r}", np.asarray(_FACTOR))
            twice = node("Mul", [source, factor], output=name, name=name)
            model.graph.insert_before(n, twice)
            n.replace_input_with(0, twice.outputs[0])
            n.replace_input_with(
                1,
                initializer(
                    model.graph, f"{n.outputs[0].name}/twice_scale", np.asarray(scale * _FACTOR, np.float32)
                ),
            )
            modified = True
        return PassResult(model, modified=modified)

    def ensures(self, model: ir.Model) -> None:
        """No product is quantised to 16 bits directly."""
        left = [n.name for n in model.graph if _is_wide_output(n)]
        if left:
            raise ir.passes.PostconditionError(f"16-bit codes straight behind a product: {left[:3]}")


def scale_undoing_factor(quantiser: ir.Node, scale: np.float32) -> np.float32:
    """Scale that a QuantizeLinear of the site's `scale` has in the file: twice, where this pass has put its
    factor before it.

    A model may multiply by 2 itself. Its own factor stands before a quantiser of the site's scale, and is no
    concern of this pass.
    """
    own = constant_of(quantiser.inputs[1])
    doubled = np.float32(scale * _FACTOR)
    multiply = made_by(quantiser.inputs[0], "Mul")
    if multiply is None or own is None or own != doubled or not _is_wide(quantiser):
        return scale
    source, factor = multiply.inputs[0], constant_of(multiply.inputs[1])
    is_product = is_op(source, "Gemm") or is_op(source, "MatMul")
    return doubled if is_product and factor is not None and factor.size == 1 and factor == _FACTOR else scale


def _is_wide(quantiser: ir.Node) -> bool:
    kind = quantization_of(quantiser)
    return kind is not None and kind.storage in {"int16", "uint16"}


def _is_wide_output(n: ir.Node) -> bool:
    return (
        n.op_type == "QuantizeLinear"
        and (is_op(n.inputs[0], "Gemm") or is_op(n.inputs[0], "MatMul"))
        and _is_wide(n)
    )
