"""Parts of a model between which channels can be levelled; see `uneven`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import fx

from mixport.model.programs.fx_graph import (
    aten,
    tensor_arg,
    tensor_list_arg,
)
from mixport.quantize.channels.factors import FIXED, Channels, Factors
from mixport.quantize.graph.roles import Kind
from mixport.quantize.sites.code_flow import CodeFlow


@dataclass(frozen=True, kw_only=True)
class Part:
    """Tensors whose channels depend on each other: they share codes or factors.

    Attributes:
        tied: sets of tensors with one scale.
        layers: those that read them, each with the set that it reads.
        numbers: of the factors that are free.
    """

    tied: tuple[tuple[fx.Node, ...], ...]
    layers: Mapping[fx.Node, int]
    numbers: frozenset[int]


def find_parts(flow: CodeFlow, factors: Factors) -> Iterator[Part]:
    """Parts with two factors or more, of which one is free, in graph order."""
    tied = tied_sets(flow, factors.carried)
    of_tensor = {tensor: index for index, tensors in enumerate(tied) for tensor in tensors}
    numbers = [
        frozenset(int(n) for tensor in tensors for n in factors.carried[tensor].numbers) for tensors in tied
    ]
    group = list(range(len(tied)))

    def find(index: int) -> int:
        while group[index] != index:
            index = group[index]
        return index

    first: dict[int, int] = {}
    for index, found in enumerate(numbers):
        for number in found - {FIXED}:
            low, high = sorted((find(index), find(first.setdefault(number, index))))
            group[high] = low
    for root in dict.fromkeys(map(find, range(len(tied)))):
        members = [index for index in range(len(tied)) if find(index) == root]
        free = frozenset[int]().union(*(numbers[index] for index in members)) - {FIXED}
        fixed = any(FIXED in numbers[index] for index in members)
        if len(free) + fixed < 2 or not free:
            continue
        place = {index: position for position, index in enumerate(members)}
        layers: dict[fx.Node, int] = {}
        for layer in factors.reads:
            births = set(behind(flow, tensor_arg(layer, 0))) & of_tensor.keys()
            if births and of_tensor[next(iter(births))] in place:
                layers[layer] = place[of_tensor[next(iter(births))]]
        if layers:
            yield Part(tied=tuple(tied[index] for index in members), layers=layers, numbers=free)


def is_link(part: Part) -> bool:
    """True for one set of tensors that convolutions alone give and read."""
    return [len(tensors) for tensors in part.tied] == [1] and all(
        layer.target is aten.conv2d.default for layer in part.layers
    )


def behind(flow: CodeFlow, operand: fx.Node) -> Iterator[fx.Node]:
    """The tensors whose codes an operand has; several behind a concat."""
    birth = flow.birth(operand)
    if flow.kinds[birth] is Kind.CONCAT:
        for source in tensor_list_arg(birth, 0):
            yield from behind(flow, source)
    else:
        yield birth


def tied_sets(flow: CodeFlow, carried: Mapping[fx.Node, Channels]) -> list[tuple[fx.Node, ...]]:
    """Tensors that share a scale, as operands of one concat or of portable sums."""
    parent = {node: node for node in carried}

    def find(node: fx.Node) -> fx.Node:
        while parent[node] is not node:
            node = parent[node]
        return node

    for node in flow.nodes:
        if (
            node not in flow.integer
            or flow.kinds[node] not in {Kind.ADD, Kind.CONCAT}
            or node in flow.streams
        ):
            continue
        if flow.kinds[node] is Kind.CONCAT:
            members = list(behind(flow, node))
        else:
            members = [
                flow.carrier_tensor(node),
                *behind(flow, tensor_arg(node, 0)),
                *behind(flow, tensor_arg(node, 1)),
            ]
        members = [member for member in members if member in parent]
        for member in members[1:]:
            parent[find(member)] = find(members[0])
    sets: dict[fx.Node, list[fx.Node]] = {}
    for node in carried:
        sets.setdefault(find(node), []).append(node)
    return [tuple(nodes) for nodes in sets.values()]
