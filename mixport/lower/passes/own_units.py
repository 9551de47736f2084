"""Data movement in units of its own: DequantizeLinear, the operator, QuantizeLinear with the same scale.

Compilers that partition a QDQ graph take an operator with the quantisers around it. Movement of bare codes
belongs to no such unit: it stays on the CPU, and what lies next to it with it (onnxruntime-qnn 2.7.0 leaves
two adds of a ResNet-20 there, for two slices and two pads). The codes are the same: movement copies values,
and the value of a code is quantised to that code.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from mixport.lower.onnx_graph import node, quantization_of, remove_dead
from mixport.lower.passes.movement import MOVES, code_type, dequantise, movable


class MovesInOwnUnitsPass(InPlacePass):
    """Put QuantizeLinear and DequantizeLinear behind each move of dequantised codes; in the place of
    `SinkDequantizePass`.
    """

    def call(self, model: ir.Model) -> PassResult:
        """One forward sweep: a move met later reads the DequantizeLinear that an earlier one left behind."""
        modified = False
        for n in list(model.graph):
            if n.op_type in MOVES and n.domain == "":
                modified = _close(model.graph, n) or modified
        remove_dead(model.graph)
        return PassResult(model, modified=modified)

    def ensures(self, model: ir.Model) -> None:
        """Every move of dequantised codes has one QuantizeLinear as its only reader."""
        for n in model.graph:
            if n.op_type in MOVES and n.domain == "" and movable(n):
                readers = [reader.op_type for output in n.outputs for reader in output.consumers()]
                if set(readers) - {"QuantizeLinear"} or len(readers) != len(n.outputs):
                    raise ir.passes.PostconditionError(f"{n.name} is no unit of its own: {readers}")


def _close(graph: ir.Graph, move: ir.Node) -> bool:
    sources = movable(move)
    if sources is None:
        return False
    _, scale, zero_point = sources[0].inputs
    found = quantization_of(sources[0])
    assert found is not None
    for output in move.outputs:
        name = output.name or move.name or "moved"
        users = list(output.uses())
        quantiser = node(
            "QuantizeLinear",
            [output, scale, zero_point],
            output=f"{name}/codes",
            name=f"{name}/QuantizeLinear",
        )
        codes = quantiser.outputs[0]
        codes.shape, codes.type = output.shape, code_type(found)
        graph.insert_after(move, quantiser)
        dequantise(graph, codes, scale=scale, zero_point=zero_point, after=quantiser, of=output, users=users)
    return True
