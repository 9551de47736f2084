"""Data movement runs on codes: DequantizeLinear sinks below reshapes, transposes, slices, concats, pads and
max pools.

DQ -> move -> consumer becomes move (on codes) -> DQ -> consumer, exact because moves copy values and
MaxPool's order is that of the codes (the scale is positive). Only then does a DequantizeLinear stand directly
before each integer operator, which is what lets a runtime fuse it. 16-bit codes stay put, since several
kernels move no int16; reshapes and transpositions do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from mixport.lower.onnx_graph import (
    UNDOES,
    Quantization,
    constant_of,
    initializer,
    made_by,
    marked,
    node,
    quantization_of,
    remove_dead,
    replace,
)

MOVES = frozenset(
    {
        "Reshape",
        "Transpose",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Slice",
        "Split",
        "Concat",
        "Gather",
        "Expand",
        "Tile",
        "Pad",
        "DepthToSpace",
        "SpaceToDepth",
        "Identity",
        "MaxPool",
    }
)
"""Operators that copy values, or choose among them in order."""


class SinkDequantizePass(InPlacePass):
    """Move each DequantizeLinear of uint8 or int8 codes below the data movement that reads it."""

    def call(self, model: ir.Model) -> PassResult:
        """One forward sweep: a move met later sees the DequantizeLinear that an earlier one left behind."""
        modified = False
        for n in list(model.graph):
            if n.op_type == "Shape":
                before = made_by(n.inputs[0], "DequantizeLinear")
                if before is not None:
                    n.replace_input_with(0, before.inputs[0])
                    modified = True
            elif n.op_type in MOVES and n.domain == "":
                modified = _sink(model.graph, n) or modified
        remove_dead(model.graph)
        return PassResult(model, modified=modified)

    def ensures(self, model: ir.Model) -> None:
        """No movable operator reads a per-tensor 8-bit DequantizeLinear any more."""
        for n in model.graph:
            if n.op_type in MOVES and n.domain == "" and movable(n):
                raise ir.passes.PostconditionError(f"{n.name} still reads dequantised codes")


class CancelRequantizePass(InPlacePass):
    """DequantizeLinear -> QuantizeLinear with the same scale, zero point and type is nothing: readers take
    the codes.

    So is it with movement in between that runtimes know for codes of any type: 16-bit codes do not sink below
    movement by themselves.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Remove each such pair that a table or a normalisation put there to read codes."""
        modified = False
        for n in list(model.graph):
            if (
                n.op_type != "QuantizeLinear"
                or marked(n.outputs[0], UNDOES) is None
                or quantization_of(n) is None
            ):
                continue
            before, moves = _dequantiser_before(n)
            codes = before.inputs[0] if before is not None else None
            if before is None or codes is None or quantization_of(before) != quantization_of(n):
                continue
            for move in reversed(moves):
                codes = _moved(model.graph, move, codes, before=n)
            replace(n.outputs[0], codes)
            model.graph.remove(n, safe=True)
            modified = True
        remove_dead(model.graph)
        return PassResult(model, modified=modified)


_MOVES_OF_ANY_TYPE = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})


def _dequantiser_before(quantiser: ir.Node) -> tuple[ir.Node | None, list[ir.Node]]:
    """The DequantizeLinear whose values a QuantizeLinear reads, and the moves on the way, the last one
    first.
    """
    value, moves = quantiser.inputs[0], list[ir.Node]()
    while value is not None:
        producer = value.producer()
        if producer is None or producer.domain != "" or producer.op_type not in _MOVES_OF_ANY_TYPE:
            break
        moves.append(producer)
        value = producer.inputs[0]
    return made_by(value, "DequantizeLinear"), moves


def _moved(graph: ir.Graph, move: ir.Node, codes: ir.Value, *, before: ir.Node) -> ir.Value:
    """The same move of the codes: other readers keep that of the floats, and without any it is removed as
    dead.
    """
    name = f"{move.name or move.op_type}/codes"
    made = ir.Node(
        "", move.op_type, [codes, *move.inputs[1:]], list(move.attributes.values()), num_outputs=1, name=name
    )
    made.outputs[0].name, made.outputs[0].shape = name, move.outputs[0].shape
    graph.insert_before(before, made)
    return made.outputs[0]


class FoldPadPass(InPlacePass):
    """Pad with zeros in front of a Conv becomes the Conv's own pads: between DequantizeLinear and Conv it
    would block the fusion.
    """

    def call(self, model: ir.Model) -> PassResult:
        """Fold where the Pad is constant, spatial and zero, and every reader is a Conv."""
        modified = False
        for pad in [n for n in model.graph if n.op_type == "Pad"]:
            amounts = _spatial_pads(pad)
            readers = pad.outputs[0].consumers()
            if (
                amounts is None
                or pad.outputs[0].is_graph_output()
                or not readers
                or any(r.op_type != "Conv" for r in readers)
            ):
                continue
            for conv in set(readers):
                own = conv.attributes["pads"].as_ints() if "pads" in conv.attributes else [0] * len(amounts)
                conv.attributes.add(
                    ir.AttrInt64s("pads", [int(a + b) for a, b in zip(own, amounts, strict=True)])
                )
                conv.attributes.pop("auto_pad", None)
                conv.replace_input_with(0, pad.inputs[0])
            modified = True
        remove_dead(model.graph)
        return PassResult(model, modified=modified)


def _spatial_pads(pad: ir.Node) -> list[int] | None:
    amounts = constant_of(pad.inputs[1])
    value = constant_of(pad.inputs[2]) if len(pad.inputs) > 2 and pad.inputs[2] is not None else np.float32(0)
    mode = pad.attributes["mode"].as_string() if "mode" in pad.attributes else "constant"
    axes_given = len(pad.inputs) > 3 and pad.inputs[3] is not None
    if amounts is None or value is None or float(value) != 0.0 or mode != "constant" or axes_given:
        return None
    rank = len(amounts) // 2
    if any(amounts[:2]) or any(amounts[rank : rank + 2]) or min(amounts) < 0:
        return None
    return [int(a) for a in (*amounts[2:rank], *amounts[rank + 2 :])]


def _fills(move: ir.Node) -> bool:
    """A pad by a constant: the other modes copy values of the tensor itself."""
    return move.op_type == "Pad" and (
        "mode" not in move.attributes or move.attributes["mode"].as_string() == "constant"
    )


def _data_inputs(move: ir.Node) -> list[int]:
    return list(range(len(move.inputs))) if move.op_type == "Concat" else [0]


def movable(move: ir.Node) -> list[ir.Node] | None:
    """The DequantizeLinear nodes that all data inputs come from, when alike, per tensor and 8-bit."""
    found = [made_by(move.inputs[i], "DequantizeLinear") for i in _data_inputs(move)]
    sources = [source for source in found if source is not None]
    if not sources or len(sources) < len(found):
        return None
    params = quantization_of(sources[0])
    if (
        params is None
        or params.storage not in {"uint8", "int8"}
        or any(quantization_of(source) != params for source in sources)
    ):
        return None
    if move.op_type == "Gather" and constant_of(move.inputs[1]) is None:
        return None
    if _fills(move):
        value = (
            constant_of(move.inputs[2])
            if len(move.inputs) > 2 and move.inputs[2] is not None
            else np.float32(0)
        )
        if value is None or float(value) != 0.0:
            return None
    if move.op_type == "MaxPool" and len(move.outputs) > 1:
        return None
    return sources


def _sink(graph: ir.Graph, move: ir.Node) -> bool:
    sources = movable(move)
    if sources is None:
        return False
    for index, source in zip(_data_inputs(move), sources, strict=True):
        move.replace_input_with(index, source.inputs[0])
    _, scale, zero_point = sources[0].inputs
    found = quantization_of(sources[0])
    assert found is not None
    if _fills(move):
        move.resize_inputs(max(len(move.inputs), 3))
        move.replace_input_with(
            2,
            initializer(
                graph, f"{found.storage}/{found.zero_point}", np.asarray(found.zero_point, found.storage)
            ),
        )
    for output in move.outputs:
        users = list(output.uses())
        output.type = code_type(found)
        dequantise(graph, output, scale=scale, zero_point=zero_point, after=move, of=output, users=users)
    return True


def code_type(quantization: Quantization) -> ir.TensorType:
    """Of uint8 or int8 codes."""
    return ir.TensorType(ir.DataType.UINT8 if quantization.storage == "uint8" else ir.DataType.INT8)


def dequantise(
    graph: ir.Graph,
    codes: ir.Value,
    *,
    scale: ir.Value | None,
    zero_point: ir.Value | None,
    after: ir.Node,
    of: ir.Value,
    users: Sequence[tuple[ir.Node, int]],
) -> None:
    """Put a DequantizeLinear of `codes` behind the node `after`: the users of `of`, and the graph's output
    where it is one, read that. A graph's output keeps its name.
    """
    name = of.name or after.name or "moved"
    back = node(
        "DequantizeLinear",
        [codes, scale, zero_point],
        output=f"{name}/dq",
        name=f"{name}/DequantizeLinear",
    )
    back.outputs[0].shape, back.outputs[0].type = of.shape, ir.TensorType(ir.DataType.FLOAT)
    graph.insert_after(after, back)
    for user, index in users:
        user.replace_input_with(index, back.outputs[0])
    for i, graph_output in enumerate(graph.outputs):
        if graph_output is of:
            graph.outputs[i] = back.outputs[0]
            of.name, back.outputs[0].name = f"{name}/moved", name
