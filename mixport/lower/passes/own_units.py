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
from mixport.lower.passes.movement import MOVES, movable


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
    kind = ir.TensorType(ir.DataType.UINT8 if found.storage == "uint8" else ir.DataType.INT8)
    for output in move.outputs:
        name = output.name or move.name or "moved"
        users = list(output.uses())
        codes = node(
            "QuantizeLinear",
            [output, scale, zero_point],
            output=f"{name}/codes",
            name=f"{name}/QuantizeLinear",
        )
        codes.outputs[0].shape, codes.outputs[0].type = output.shape, kind
        back = node(
            "DequantizeLinear",
            [codes.outputs[0], scale, zero_point],
            output=f"{name}/dq",
            name=f"{name}/DequantizeLinear",
        )
        back.outputs[0].shape, back.outputs[0].type = output.shape, ir.TensorType(ir.DataType.FLOAT)
        graph.insert_after(move, [codes, back])
        for user, index in users:
            user.replace_input_with(index, back.outputs[0])
        for i, graph_output in enumerate(graph.outputs):
            if graph_output is output:
                graph.outputs[i] = back.outputs[0]
                output.name, back.outputs[0].name = f"{name}/moved", name
    return True
