"""Two quantisers in a row with unequal scales: kept apart, so that no runtime merges them into one pair with
a third scale.

ONNX Runtime 1.32 (DoubleQDQPairsRemover, level basic) turns Q(s1) -> DQ(s1) -> Q(s2) -> DQ(s2) into Q(s3) ->
DQ(s3), s3 for the part of the range that both cover, where each tensor in between has one reader. It looks
again after other optimisers have removed what stood in between: identities, expansions to the same shape,
transposes that cancel. 8-bit codes get a Clip to the whole range of their type behind the first quantiser: it
changes nothing, and no optimiser removes it (tests/unit/lower/passes/test_separate_pairs.py).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from mixport.lower.onnx_graph import constant_of, initializer, made_by, node, quantization_of

_VANISHING_MOVES = frozenset({"Identity", "Expand", "Transpose", "Cast"})
"""Movement that an optimiser may remove or push elsewhere, on codes and on floats."""

_VANISHING_FLOATS: dict[str, tuple[float, tuple[int, ...]]] = {
    "Mul": (1.0, (0, 1)),
    "Add": (0.0, (0, 1)),
    "Sub": (0.0, (1,)),
    "Div": (1.0, (1,)),
}
"""Float operator -> the constant that makes it an identity, and at which inputs."""


class SeparatePairsPass(InPlacePass):
    """Put a Clip between two quantisers that a runtime would merge."""

    def call(self, model: ir.Model) -> PassResult:
        """Once for each first quantiser."""
        modified = False
        for first in dict.fromkeys(quantiser for quantiser, _ in _merging(model.graph)):
            kind = quantization_of(first)
            if kind is None or kind.storage not in {"uint8", "int8"}:
                continue  # no integer Clip in ONNX Runtime: `ensures` refuses
            codes, readers = first.outputs[0], first.outputs[0].uses()
            name, limits = codes.name or "codes", np.iinfo(kind.storage)
            bounds = [
                initializer(model.graph, f"{kind.storage}/{v}", np.asarray(v, np.dtype(kind.storage)))
                for v in (limits.min, limits.max)
            ]
            clip = node("Clip", [codes, *bounds], output=name, name=f"{name}/Clip")
            model.graph.insert_after(first, clip)
            codes.name = f"{name}/q"
            for reader, index in readers:
                reader.replace_input_with(index, clip.outputs[0])
            modified = True
        return PassResult(model, modified=modified)

    def ensures(self, model: ir.Model) -> None:
        """No two pairs of unequal scales stand in a row."""
        left = next(_merging(model.graph), None)
        if left is not None:
            names = [quantiser.outputs[0].name for quantiser in left]
            raise ir.passes.PostconditionError(
                f"quantisers {names[0]} and {names[1]} stand in a row, and a runtime would merge them"
            )


def _merging(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Node]]:
    """Quantisers of unequal scales that nothing which stays would keep apart."""
    for second in graph:
        if second.op_type != "QuantizeLinear" or not _is_dequantised(second.outputs[0]):
            continue
        first = _quantiser_before(second)
        if first is not None and _may_merge(first, second):
            yield first, second


def _may_merge(first: ir.Node, second: ir.Node) -> bool:
    """Per tensor, of one type, and not alike: equal pairs may merge, since codes come back unchanged."""
    a, b = quantization_of(first), quantization_of(second)
    return a is not None and b is not None and a[2] == b[2] and a != b


def _quantiser_before(second: ir.Node) -> ir.Node | None:
    """The QuantizeLinear whose values alone arrive at `second`, through one DequantizeLinear and what may
    vanish.
    """
    value = _float_source(second.inputs[0])
    dequantiser = made_by(value, "DequantizeLinear")
    if dequantiser is None or not _one_reader(dequantiser.outputs[0]):
        return None
    codes = dequantiser.inputs[0]
    while codes is not None and _one_reader(codes):
        producer = codes.producer()
        if producer is None or producer.op_type == "QuantizeLinear":
            return producer
        if producer.op_type not in _VANISHING_MOVES:
            return None
        codes = producer.inputs[0]
    return None


def _float_source(value: ir.Value | None) -> ir.Value | None:
    """Back over float operators that may vanish; None where a value on the way has other readers."""
    while value is not None and _one_reader(value):
        producer = value.producer()
        if producer is None:
            return None
        if producer.op_type in _VANISHING_MOVES:
            value = producer.inputs[0]
            continue
        place = _operand_of_identity(producer)
        if place is None:
            return value
        value = producer.inputs[place]
    return None


def _operand_of_identity(operator: ir.Node) -> int | None:
    neutral, places = _VANISHING_FLOATS.get(operator.op_type, (0.0, ()))
    for place in places:
        constant = constant_of(operator.inputs[place])
        if constant is not None and constant.size > 0 and bool(np.all(constant == neutral)):
            return 1 - place
    return None


def _one_reader(value: ir.Value) -> bool:
    """One reader, or several that compute the same, which a runtime joins to one first."""
    readers = {
        (user.op_type, index, tuple(id(v) for v in user.inputs), str(user.attributes))
        for user, index in value.uses()
    }
    return len(readers) == 1 and not value.is_graph_output()


def _is_dequantised(codes: ir.Value) -> bool:
    """True where a DequantizeLinear reads the codes, behind movement that may vanish."""
    readers = codes.consumers()
    return any(
        r.op_type == "DequantizeLinear" or (r.op_type in _VANISHING_MOVES and _is_dequantised(r.outputs[0]))
        for r in readers
    )
