"""Forms that older opsets read: the exporter writes opset 21.

1. `allowzero = 1` of a Reshape (14) says nothing where no size is 0: dropped, whatever the opset.
2. Axes of a ReduceMax and its like are an input from opset 18 on, and an attribute before.

What has no older form is refused by `mixport.lower.opset_check`.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from mixport.lower.onnx_graph import constant_of, storages
from mixport.records.targets import Target

_AXES_AS_INPUT = 18
_REDUCTIONS = frozenset(
    {
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceProd",
        "ReduceSumSquare",
    }
)
"""Without ReduceSum, whose axes are an input from opset 13 on."""


class OlderFormsPass(InPlacePass):
    """See the module's cases 1 and 2. Comes when all initialisers are there: their types decide the opset."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target

    def call(self, model: ir.Model) -> PassResult:
        """Look at every node once."""
        older = self.target.opset_for(storages(model.graph)) < _AXES_AS_INPUT
        modified = False
        for n in model.graph:
            if n.domain:
                continue
            if n.op_type == "Reshape":
                modified |= _drop_allowzero(n)
            elif older and n.op_type in _REDUCTIONS:
                modified |= _axes_to_attribute(n)
        return PassResult(model, modified=modified)


def _drop_allowzero(n: ir.Node) -> bool:
    sizes = constant_of(n.inputs[1])
    if "allowzero" not in n.attributes or sizes is None or not sizes.all():
        return False
    n.attributes.pop("allowzero")
    return True


def _axes_to_attribute(n: ir.Node) -> bool:
    axes = constant_of(n.inputs[1]) if len(n.inputs) > 1 else None
    if axes is None or n.attributes.get_int("noop_with_empty_axes", 0):
        return False
    n.resize_inputs(1)
    n.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in axes])
    n.attributes.pop("noop_with_empty_axes", None)
    return True
