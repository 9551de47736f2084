"""Last touches on the file: names, versions, and nothing that does not belong in a release.

Sites, layers and weights keep names that people can read, the rest gets short ones. Every node and every
tensor has a name, and no name is given twice, to a node or to a tensor: readers that call an unnamed node by
its output refuse a file where another node has that name ("Duplicate node name", tract 0.23.9). Opset and IR
version are the target's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import MutableMapping, Sequence
from typing import cast

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from mixport.arithmetic.opsets import IR_VERSION
from mixport.lower.onnx_graph import LAYER, SITE, marked, remove_dead, storages
from mixport.records.errors import TargetError
from mixport.records.signature import Signature
from mixport.records.targets import Target

_NUMBERED = frozenset({"QuantizeLinear", "DequantizeLinear", "Clip", "Cast"})
"""Quantisers and moves are known by what they give: repeating it would cost a tenth of a 2-bit file."""

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

    def __init__(self, target: Target, sites: frozenset[str], signature: Signature) -> None:
        super().__init__()
        self.target, self.sites, self.signature = target, sites, signature

    def call(self, model: ir.Model) -> PassResult:
        """Always modifies."""
        remove_dead(model.graph)
        opset = self.target.opset_for(storages(model.graph))
        if opset > self.target.graph.opset_max:
            raise TargetError(
                (
                    f"target {self.target.name}: opset {opset} needed, allowed up to "
                    f"{self.target.graph.opset_max}"
                ),
                hint="choose wider weights",
            )
        model.opset_imports[""] = opset
        model.ir_version = min(IR_VERSION[opset], self.target.graph.ir_version_max)
        model.producer_name, model.producer_version, model.doc_string = "mixport", None, None
        model.metadata_props.clear()
        model.graph.name = "model"
        model.graph.doc_string = None
        # The exporter keeps its account of the program here: a fifth of a 2-bit file
        model.graph.metadata_props.clear()
        self._rename(model.graph)
        for values, ports in (
            (model.graph.inputs, self.signature.inputs),
            (model.graph.outputs, self.signature.outputs),
        ):
            for value, port in zip(values, ports, strict=True):
                value.name = port.name
        return PassResult(model, modified=True)

    def _rename(self, graph: ir.Graph) -> None:
        kept = {id(v): v for v in (*graph.inputs, *graph.outputs)}
        ports = (*self.signature.inputs, *self.signature.outputs)
        names = _Names({*(port.name for port in ports), *self.sites})
        names.claim(graph.initializers)
        for n in graph:
            n.metadata_props.clear()
            n.doc_string = None
            _drop_defaults(n)
            n.name = (
                names.number("n")
                if n.op_type in _NUMBERED
                else names.take(_layer_name(n) or n.name or n.op_type)
            )
        for value in (v for n in graph for v in n.outputs):
            value.metadata_props.clear()
            if id(value) in kept:
                continue
            value.type, value.shape = None, None  # value_info of intermediates: readers infer it
            site = marked(value, SITE)
            value.name = site if site in self.sites else names.number("t")
        for value in (*kept.values(), *graph.initializers.values()):
            value.metadata_props.clear()
            value.doc_string = None
            if id(value) not in kept:
                value.type, value.shape = None, None  # the tensor itself says so


class _Names:
    """Names given so far. Nodes and values share them."""

    def __init__(self, used: set[str]) -> None:
        self.used = used
        self._numbers: Counter[str] = Counter()

    def take(self, wanted: str) -> str:
        """`wanted`, numbered from 2 where it is taken."""
        name, n = wanted, 1
        while name in self.used:
            n += 1
            name = f"{wanted}_{n}"
        self.used.add(name)
        return name

    def number(self, letter: str) -> str:
        """The first of `t0`, `t1` ... that is free."""
        while (name := f"{letter}{self._numbers[letter]}") in self.used:
            self._numbers[letter] += 1
        self.used.add(name)
        return name

    def claim(self, initializers: MutableMapping[str, ir.Value]) -> None:
        """Initialisers keep their names, but for those that a site has."""
        taken = [name for name in initializers if name in self.used]
        self.used.update(initializers)
        for name in taken:
            initializers[name].name = self.take(name)


def _layer_name(n: ir.Node) -> str | None:
    """`layer1.0.conv1/Conv` for the operator that reads that layer's weight; the site's name for one that
    feeds its QuantizeLinear.
    """
    if n.op_type in {"Conv", "Gemm"}:
        layer = marked(n.inputs[1], LAYER)
        return f"{layer}/{n.op_type}" if layer else None
    if n.op_type in {"Add", "Mul", "MatMul", "GlobalAveragePool"}:
        readers = [r for r in n.outputs[0].consumers() if r.op_type == "QuantizeLinear"]
        site = _site_of(readers[0]) if len(readers) == 1 else None
        return f"{site}/{n.op_type}" if site else None
    return None


def _site_of(quantizer: ir.Node) -> str | None:
    """Name of the site whose codes a QuantizeLinear gives, by itself or through the Clip behind it."""
    codes = quantizer.outputs[0]
    clips = [r.outputs[0] for r in codes.consumers() if r.op_type == "Clip"]
    return next((name for value in (codes, *clips) if (name := marked(value, SITE)) is not None), None)


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
