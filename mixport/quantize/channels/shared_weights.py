"""Layers that have their weights in common: a module called several times, or one tensor under several names.

Their integers are equal, and stored once, as long as no rewrite changes the weights for one of them alone.
"""

from __future__ import annotations

from collections import defaultdict

from torch import Tensor, fx

from mixport.model.programs.fx_graph import known_constant, module_path
from mixport.quantize.graph.roles import Kind, classify
from mixport.records.decision import Decision


def layers_with_shared_weights(graph: fx.GraphModule) -> tuple[frozenset[fx.Node], list[Decision]]:
    """Layers whose weights another layer has, and a decision for each such weight.

    Depthwise kernels do not count: they are small, and those of average pools are alike by nature. Nor do
    weights that are all zero.
    """
    weights = {
        node: known_constant(graph, node.args[1])
        for node, kind in classify(graph).items()
        if kind is Kind.LAYER
    }
    groups: dict[object, list[fx.Node]] = defaultdict(list)
    for node, weight in weights.items():
        groups[_glance(weight)].append(node)
    shared: set[fx.Node] = set()
    decisions: list[Decision] = []
    for alike in (group for group in groups.values() if len(group) > 1):
        same: dict[bytes, list[fx.Node]] = defaultdict(list)
        for node in alike:
            if weights[node].shape[1] > 1 and bool(weights[node].any()):
                same[weights[node].numpy().tobytes()].append(node)
        for nodes in (group for group in same.values() if len(group) > 1):
            shared.update(nodes)
            names = ", ".join(dict.fromkeys(module_path(node) or node.name for node in nodes))
            why = (
                f"{len(nodes)} layers have these weights in common: changed for each of them, they would "
                f"be stored {len(nodes)} times"
            )
            decisions.append(Decision(where=names, what="weights take no ratios of channels", why=why))
    return frozenset(shared), decisions


def _glance(weight: Tensor) -> object:
    """Equal for equal weights, and different for most others."""
    return tuple(weight.shape), weight.flatten()[:16].numpy().tobytes()
