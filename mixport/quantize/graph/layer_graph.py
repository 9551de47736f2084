"""What surrounds a layer in the graph of quantisers: its groups, and the nodes that lead to the output."""

from __future__ import annotations

from torch import fx

from mixport.model.programs.fx_graph import argument, aten


def groups_of(node: fx.Node) -> int:
    """Groups of a convolution, 1 for a linear layer."""
    if node.target is aten.conv1d.default or node.target is aten.conv2d.default:
        return int(argument(node, 6, "groups", 1))
    return 1


def live_nodes(graph: fx.GraphModule) -> set[fx.Node]:
    """Nodes that lead to the output: clamps that a quantiser has absorbed are still in the graph, and lead
    nowhere.
    """
    live: set[fx.Node] = set()
    for node in reversed(graph.graph.nodes):
        if node.op == "output" or not live.isdisjoint(node.users):
            live.add(node)
    return live
