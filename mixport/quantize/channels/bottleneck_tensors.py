"""Tensors whose channels may be given another basis: those that only convolutions and adds make, and only
those read.

Between the linear bottlenecks of MobileNets nothing acts on single channels: a residual chain of
convolutions' outputs and their sums, read by convolutions. An invertible matrix on all of its channels is
undone in the weights of the readers.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from torch import fx

from mixport.model.programs.fx_graph import argument, aten, groups_of, shape_of, tensor_arg
from mixport.quantize.graph.roles import Kind
from mixport.quantize.sites.code_flow import CodeFlow
from mixport.records.choices.scheme import Scheme


@dataclass(frozen=True, kw_only=True)
class Readings:
    """A tensor as the convolutions read it.

    Attributes:
        tensor: which.
        layers: that read it.
        bits: width of its codes for its narrowest reader.
    """

    tensor: fx.Node
    layers: tuple[fx.Node, ...]
    bits: int


@dataclass(frozen=True, kw_only=True)
class LinearChain:
    """Tensors that must share a basis.

    Attributes:
        producers: convolutions that give them, in graph order.
        adds: sums of two of them, in graph order.
        read: those of both that convolutions read, in graph order.
        padded: a reader pads with zeros, so that their means must stay.
    """

    producers: tuple[fx.Node, ...]
    adds: tuple[fx.Node, ...]
    read: tuple[Readings, ...]
    padded: bool

    @property
    def channels(self) -> int:
        """Of each tensor."""
        return shape_of(self.producers[0])[1]


def linear_chains(flow: CodeFlow, scheme: Scheme) -> list[LinearChain]:
    """All chains of a canonical float graph that a convolution reads, in graph order."""
    members = [node for node in flow.nodes if _is_convolution(flow, node) or flow.kinds[node] is Kind.ADD]
    parent = {node: node for node in members}

    def find(node: fx.Node) -> fx.Node:
        while parent[node] is not node:
            node = parent[node]
        return node

    closed = {node for node in members if not _stays_linear(flow, node, parent)}
    for node in members:
        for operand in node.all_input_nodes if flow.kinds[node] is Kind.ADD else ():
            if operand in parent:
                parent[find(operand)] = find(node)
    tainted = {find(node) for node in closed}
    chains: dict[fx.Node, list[fx.Node]] = {}
    for node in members:
        if find(node) not in tainted:
            chains.setdefault(find(node), []).append(node)
    made = [_chain(flow, nodes, scheme) for nodes in chains.values()]
    return [chain for chain in made if chain.read]


def _is_convolution(flow: CodeFlow, node: fx.Node) -> bool:
    """Mixes all channels: neither depthwise nor grouped."""
    return flow.kinds[node] is Kind.LAYER and node.target is aten.conv2d.default and groups_of(node) == 1


def _stays_linear(flow: CodeFlow, node: fx.Node, members: Container[fx.Node]) -> bool:
    """True where nothing but convolutions and adds of whole tensors makes it and reads it."""
    if flow.kinds[node] is Kind.ADD:
        operands = [tensor_arg(node, index) for index in (0, 1)]
        if not all(operand in members and shape_of(operand) == shape_of(node) for operand in operands):
            return False
    readers = list(flow.readers(node))
    return bool(readers) and all(
        operand is node and (_is_convolution(flow, user) or flow.kinds[user] is Kind.ADD)
        for user, operand in readers
    )


def _chain(flow: CodeFlow, nodes: list[fx.Node], scheme: Scheme) -> LinearChain:
    read: list[Readings] = []
    for node in nodes:
        layers = tuple(
            dict.fromkeys(user for user, _ in flow.readers(node) if flow.kinds[user] is Kind.LAYER)
        )
        if layers:
            edges = [flow.reads_edge(layer, node, scheme.edge_convention) for layer in layers]
            bits = min(scheme.edge_bits if is_edge else scheme.activation_bits for is_edge in edges)
            read.append(Readings(tensor=node, layers=layers, bits=bits))
    return LinearChain(
        producers=tuple(node for node in nodes if flow.kinds[node] is Kind.LAYER),
        adds=tuple(node for node in nodes if flow.kinds[node] is Kind.ADD),
        read=tuple(read),
        padded=any(_pads(layer) for one in read for layer in one.layers),
    )


def _pads(layer: fx.Node) -> bool:
    return any(size != 0 for size in argument(layer, 4, "padding", (0, 0)))
