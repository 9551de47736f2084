"""Placeholders to standard operators.

1. QuantizeDequantize -> QuantizeLinear [-> Clip on codes] -> DequantizeLinear; the code tensor is marked as
  the site's.
2. Lookup -> the nodes of `tables`.
3. DequantizeWeight -> packed initialiser [-> Cast to INT8] -> DequantizeLinear along axis 0, or with one
   scale for all channels, with an explicit zero point: without one ONNX Runtime 1.31 leaves Gemm in float.
4. DequantizeBias -> DequantizeLinear along axis 0, int32, no zero point.
5. Softmax, LayerNorm -> the nodes of `softmax` and `layer_norm`; Numerators -> those of
  `attention_softmax`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from mixport.lower.onnx_graph import LAYER, SITE, constant_of, initializer, mark, node, replace
from mixport.lower.operators.attention_softmax import expand_numerators
from mixport.lower.operators.layer_norm import expand_layer_norm
from mixport.lower.operators.softmax import expand_softmax
from mixport.lower.operators.tables import expand_table
from mixport.lower.translate import DOMAIN
from mixport.records.errors import InvariantError
from mixport.records.targets import Target

_PACKED = {"int2": ir.DataType.INT2, "int4": ir.DataType.INT4}


@dataclass(frozen=True, kw_only=True)
class _Site:
    name: str
    scale: ir.Value
    zero_point: ir.Value


class ExpandPlaceholdersPass(InPlacePass):
    """See the module's cases 1 to 5."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target

    def call(self, model: ir.Model) -> PassResult:
        """Replace every mixport:: node."""
        handlers = {
            "QuantizeDequantize": self._quantize,
            "Lookup": expand_table,
            "DequantizeWeight": self._weight,
            "DequantizeBias": self._bias,
            "Softmax": expand_softmax,
            "Numerators": expand_numerators,
            "LayerNorm": expand_layer_norm,
        }
        _clear_names(model.graph)
        placeholders = [n for n in model.graph if n.domain == DOMAIN]
        for placeholder in placeholders:
            handlers[placeholder.op_type](model.graph, placeholder)
            model.graph.remove(placeholder, safe=True)
        model.opset_imports.pop(DOMAIN, None)
        return PassResult(model, modified=bool(placeholders))

    def ensures(self, model: ir.Model) -> None:
        """No placeholder is left."""
        left = [n.op_type for n in model.graph if n.domain == DOMAIN]
        if left:
            raise ir.passes.PostconditionError(f"placeholders left: {left[:3]}")

    def _quantize(self, graph: ir.Graph, old: ir.Node) -> None:
        storage = old.attributes["storage"].as_string()
        low, high = old.attributes["qmin"].as_int(), old.attributes["qmax"].as_int()
        site = self._site(graph, old, storage)
        info = np.iinfo(storage)
        clipped = (low, high) != (info.min, info.max)
        quantize = node(
            "QuantizeLinear",
            [old.inputs[0], site.scale, site.zero_point],
            output=f"{site.name}/q" if clipped else site.name,
            name=f"{site.name}/QuantizeLinear",
        )
        nodes, codes = [quantize], quantize.outputs[0]
        if clipped:
            bounds = [_scalar(graph, value, storage) for value in (low, high)]
            clip = node("Clip", [codes, *bounds], output=site.name, name=f"{site.name}/Clip")
            nodes.append(clip)
            codes = clip.outputs[0]
        mark(codes, SITE, site.name)
        self._dequantize(graph, old, nodes, codes, site, storage)

    def _weight(self, graph: ir.Graph, old: ir.Node) -> None:
        name, bits = old.attributes["site"].as_string(), old.attributes["bits"].as_int()
        codes, scale = constant_of(old.inputs[0]), constant_of(old.inputs[1])
        if codes is None or scale is None:
            raise InvariantError(f"weight {name} is not constant")
        storage = self.target.weights.storage[bits]
        nodes: list[ir.Node] = []
        if storage in _PACKED:
            packed = initializer(graph, name, codes.astype(_PACKED[storage].numpy()), dtype=_PACKED[storage])
            cast = node(
                "Cast", [packed], output=f"{name}/int8", name=f"{name}/Cast", to=int(ir.DataType.INT8)
            )
            nodes, source = [cast], cast.outputs[0]
        else:
            source = initializer(graph, name, codes.astype(np.int8))
        inputs: list[ir.Value | None]
        if self.target.scale_grid.per_tensor:
            inputs = [
                source,
                initializer(graph, f"{name}/scale", scale[0].astype(np.float32)),
                _scalar(graph, 0, "int8"),
            ]
            axis: dict[str, int] = {}
        else:
            zeros = initializer(graph, f"zeros/{len(scale)}", np.zeros(len(scale), np.int8))
            inputs, axis = (
                [source, initializer(graph, f"{name}/scale", scale.astype(np.float32)), zeros],
                {"axis": 0},
            )
        dequantize = node(
            "DequantizeLinear", inputs, output=f"{name}/dq", name=f"{name}/DequantizeLinear", **axis
        )
        mark(dequantize.outputs[0], LAYER, name.removesuffix(".weight"))
        graph.insert_before(old, [*nodes, dequantize])
        replace(old.outputs[0], dequantize.outputs[0])

    def _bias(self, graph: ir.Graph, old: ir.Node) -> None:
        name = old.attributes["site"].as_string()
        codes, scale = constant_of(old.inputs[0]), constant_of(old.inputs[1])
        if codes is None or scale is None:
            raise InvariantError(f"bias {name} is not constant")
        whole = self.target.scale_grid.per_tensor
        stored = scale[0] if whole else scale
        dequantize = node(
            "DequantizeLinear",
            [
                initializer(graph, name, codes.astype(np.int32)),
                initializer(graph, f"{name}/scale", stored.astype(np.float32)),
            ],
            output=f"{name}/dq",
            name=f"{name}/DequantizeLinear",
            **({} if whole else {"axis": 0}),
        )
        graph.insert_before(old, dequantize)
        replace(old.outputs[0], dequantize.outputs[0])

    def _site(self, graph: ir.Graph, old: ir.Node, storage: str) -> _Site:
        name = old.attributes["site"].as_string()
        value = np.asarray(old.attributes["scale"].as_float(), np.float32)
        return _Site(
            name=name,
            scale=initializer(graph, f"{name}/scale", value),
            zero_point=_scalar(graph, old.attributes["zero_point"].as_int(), storage),
        )

    def _dequantize(
        self, graph: ir.Graph, old: ir.Node, nodes: list[ir.Node], codes: ir.Value, site: _Site, storage: str
    ) -> None:
        back = node(
            "DequantizeLinear",
            [codes, site.scale, site.zero_point],
            output=f"{site.name}/dq",
            name=f"{site.name}/DequantizeLinear",
        )
        graph.insert_before(old, [*nodes, back])
        replace(old.outputs[0], back.outputs[0])


def _scalar(graph: ir.Graph, value: int, storage: str) -> ir.Value:
    return initializer(graph, f"{storage}/{value}", np.asarray(value, np.dtype(storage)))


def _clear_names(graph: ir.Graph) -> None:
    """Give the exporter's own tensors short names."""
    kept = {id(v) for v in (*graph.inputs, *graph.outputs)}
    values = [v for n in graph for v in n.outputs if id(v) not in kept]
    for i, value in enumerate(values):
        value.name = f"t{i}"
    constants = list(graph.initializers.values())
    graph.initializers.clear()
    for i, value in enumerate(constants):
        value.name = f"c{i}"
        graph.initializers[value.name] = value
