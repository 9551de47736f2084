"""Last touches on the file: names, versions, and nothing that does not belong in a release.

Sites, layers and weights keep names that people can read, the rest gets short ones; opset and IR version are the target's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from mixport.errors import TargetError
from mixport.lower.onnx_graph import is_op, remove_dead
from mixport.targets import Target

_IR_OF_OPSET = {21: 10, 22: 10, 23: 11, 24: 12, 25: 13, 26: 13}
"""IR version that first came with each opset (onnx/VERSIONS)."""

_NAMED_BY_OUTPUT = frozenset({"QuantizeLinear", "DequantizeLinear", "Clip", "Cast"})

_DEFAULTS: dict[str, dict[str, object]] = {
    "auto_pad": {"Conv": "NOTSET", "MaxPool": "NOTSET"},
    "dilations": {"Conv": 1, "MaxPool": 1},
    "group": {"Conv": 1},
    "strides": {"Conv": 1},
    "pads": {"Conv": 0, "MaxPool": 0},
    "alpha": {"Gemm": 1.0},
    "beta": {"Gemm": 1.0},
    "allowzero": {"Reshape": 0},
    "ceil_mode": {"MaxPool": 0},
    "storage_order": {"MaxPool": 0},
}
"""Attributes dropped where they state the operator's default (ONNX, opset 21)."""


class FinishPass(InPlacePass):
    """Name integer operators after their layer, drop provenance and intermediate types, set versions."""

    def __init__(self, target: Target, sites: frozenset[str]) -> None:
        super().__init__()
        self.target, self.sites = target, sites

    def call(self, model: ir.Model) -> PassResult:
        """Always modifies."""
        remove_dead(model.graph)
        storages = {v.const_value.dtype.name.lower() for v in model.graph.initializers.values() if v.const_value is not None}
        opset = self.target.opset_for(storages)
        if opset > self.target.graph.opset_max:
            raise TargetError(
                f"target {self.target.name}: opset {opset} needed, allowed up to {self.target.graph.opset_max}", hint="choose wider weights"
            )
        model.opset_imports[""] = opset
        model.ir_version = min(_IR_OF_OPSET[opset], self.target.graph.ir_version_max)
        model.producer_name, model.producer_version, model.doc_string = "mixport", None, None
        model.metadata_props.clear()
        model.graph.name = "model"
        model.graph.doc_string = None
        model.graph.metadata_props.clear()  # the exporter keeps its account of the program here: a fifth of a 2-bit file
        self._rename(model.graph)
        model.graph.inputs[0].name, model.graph.outputs[0].name = "input", "output"
        return PassResult(model, modified=True)

    def _rename(self, graph: ir.Graph) -> None:
        kept = {id(v) for v in (*graph.inputs, *graph.outputs)}
        used: set[str] = set()
        count = 0
        # A layer may be called t0, or a/dq: only the codes of a site keep its name.
        codes = {id(v) for v in _code_tensors(graph, self.sites)}
        taken = {*self.sites, *graph.initializers, "input", "output"}
        names = {n: _layer_name(n) for n in graph}
        for n in graph:
            n.metadata_props.clear()
            n.doc_string = None
            _drop_defaults(n)
            # Quantisers and moves are named by their output; repeating it would cost a tenth of a 2-bit file.
            n.name = "" if n.op_type in _NAMED_BY_OUTPUT else _unique(names[n] or n.name or n.op_type, used)
            for value in n.outputs:
                value.metadata_props.clear()
                if id(value) not in kept:
                    value.type, value.shape = None, None  # value_info of intermediates: readers infer it
                    if value.name not in self.sites or id(value) not in codes:
                        while (name := f"t{count}") in taken:
                            count += 1
                        value.name, count = name, count + 1
        for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
            value.metadata_props.clear()
            value.doc_string = None
            if id(value) not in kept:
                value.type, value.shape = None, None  # the tensor itself says so


def _layer_name(n: ir.Node) -> str | None:
    """`layer1.0.conv1` for the operator that reads layer1.0.conv1.weight; the site's name for one that feeds its QuantizeLinear."""
    if n.op_type in {"Conv", "Gemm"}:
        weight = n.inputs[1]
        if weight is not None and is_op(weight, "DequantizeLinear"):
            return (weight.name or "").removesuffix("/dq").removesuffix(".weight") or None
    if n.op_type in {"Add", "Mul", "MatMul", "GlobalAveragePool"}:
        readers = [r for r in n.outputs[0].consumers() if r.op_type == "QuantizeLinear"]
        if len(readers) == 1:
            return f"{(readers[0].outputs[0].name or '').removesuffix('/q')}/{n.op_type}"
    return None


def _code_tensors(graph: ir.Graph, sites: frozenset[str]) -> list[ir.Value]:
    """Results of quantisers, clips and tables that carry a site's name."""
    values = [value for n in graph if n.op_type in {"QuantizeLinear", "Clip", "Gather"} for value in n.outputs]
    return [value for value in values if value.name in sites]


def _drop_defaults(n: ir.Node) -> None:
    """Attributes that only state the operator's default."""
    for name, values in _DEFAULTS.items():
        attribute = n.attributes.get(name)
        if attribute is None:
            continue
        value: object = attribute.value
        flat = set(cast("Sequence[object]", value)) if isinstance(value, (list, tuple)) else {value}
        if n.op_type in values and flat <= {values[n.op_type]}:
            n.attributes.pop(name)


def _unique(name: str, used: set[str]) -> str:
    candidate, i = name, 1
    while candidate in used:
        i += 1
        candidate = f"{name}_{i}"
    used.add(candidate)
    return candidate
