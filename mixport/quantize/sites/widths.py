"""How many bits the weights of each layer get: decided once, before anything is inserted into the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import fx

from mixport.model.programs.fx_graph import constant, module_path
from mixport.quantize.graph.roles import Kind
from mixport.quantize.sites.planner import QuantizationPlan
from mixport.quantize.sites.site_plan import unique_name
from mixport.records.choices.scheme import Scheme
from mixport.records.choices.width_table import WidthTable
from mixport.records.errors import InvariantError


@dataclass(frozen=True, kw_only=True)
class LayerWidth:
    """Width of one layer's weights.

    Attributes:
        name: of the layer, and of its WeightSite; born here.
        bits: of its codes, 2 to 8.
        reason: why this width.
        fixed: True where a rule sets the width whatever the scheme: first and last layer, one weight a
            channel.
    """

    name: str
    bits: int
    reason: str
    fixed: bool


LayerWidths = Mapping[fx.Node, LayerWidth]
"""Layer node of the captured graph -> its width, in graph order."""


def scheme_widths(
    graph: fx.GraphModule, plan: QuantizationPlan, scheme: Scheme, *, table: WidthTable | None = None
) -> dict[fx.Node, LayerWidth]:
    """Widths as the scheme has them, and a table where it names a layer.

    Args:
        graph: captured float graph, before quantisers are inserted.
        plan: of this graph.
        scheme: widths of edges and of all other layers.
        table: widths of single layers.

    Returns:
        one entry a layer, in graph order.
    """
    used: set[str] = set()
    found = {
        node: _width(graph, node, unique_name(module_path(node) or node.name, used), plan=plan, scheme=scheme)
        for node in graph.graph.nodes
        if plan.kinds.get(node) is Kind.LAYER
    }
    if table is None:
        return found
    return {
        node: width
        if (bits := table.weights.get(width.name)) is None
        else replace(width, bits=bits, reason="width table", fixed=True)
        for node, width in found.items()
    }


def _width(
    graph: fx.GraphModule, node: fx.Node, name: str, *, plan: QuantizationPlan, scheme: Scheme
) -> LayerWidth:
    weight = constant(graph, node.args[1])
    if weight is None:
        raise InvariantError(f"weight of layer {name} is not constant")
    if weight[0].numel() == 1:
        return LayerWidth(name=name, bits=8, reason="one weight a channel: exact at any width", fixed=True)
    if node in plan.edges:
        return LayerWidth(
            name=name,
            bits=scheme.edge_bits,
            reason=f"first or last layer: {scheme.edge_bits} edge bits",
            fixed=True,
        )
    return LayerWidth(name=name, bits=scheme.weight_bits, reason=scheme.name, fixed=False)
