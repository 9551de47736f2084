"""Reshapes in a row: only the last one counts. Flattening around tables, and linear layers on tokens, put
them there.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from mixport.lower.onnx_graph import SITE, constant_of, marked, remove_dead

_RESHAPES = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten"})
"""Operators that keep every value and their order."""


class JoinReshapesPass(InPlacePass):
    """A Reshape to sizes that do not refer to its input reads what the reshapes before it read; codes of a
    site keep their shape.
    """

    def call(self, model: ir.Model) -> PassResult:
        """One forward sweep: each Reshape looks back over all that precede it."""
        modified = False
        for n in list(model.graph):
            if not _is_absolute(n):
                continue
            source = _before(n)
            if source is not n.inputs[0]:
                n.replace_input_with(0, source)
                modified = True
        remove_dead(model.graph)
        return PassResult(model, modified=modified)

    def ensures(self, model: ir.Model) -> None:
        """No Reshape that could reads another one."""
        left = [n.name for n in model.graph if _is_absolute(n) and _before(n) is not n.inputs[0]]
        if left:
            raise ir.passes.PostconditionError(f"reshapes in a row: {left[:3]}")


def _is_absolute(n: ir.Node) -> bool:
    """A Reshape whose sizes are constant, none of them copied from the input."""
    if n.op_type != "Reshape" or n.domain != "":
        return False
    sizes = constant_of(n.inputs[1])
    return sizes is not None and bool((sizes != 0).all())


def _before(n: ir.Node) -> ir.Value | None:
    value = n.inputs[0]
    while value is not None and marked(value, SITE) is None and not value.is_graph_output():
        producer = value.producer()
        if producer is None or producer.op_type not in _RESHAPES or producer.domain != "":
            return value
        value = producer.inputs[0]
    return value
