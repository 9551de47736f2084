"""The units that reconstruction optimises one after another, found on the traced graph alone.

A unit ends where a single tensor with codes passes: everything before it acts on what follows through this
tensor only. Residual branches therefore stay whole. Neighbouring pieces of one module (the two halves of a
transformer block, the layers of an inverted bottleneck without shortcut) become one unit: which module made a
node is in the trace, so that no architecture has to be known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from mixport.model.programs.fx_graph import module_path
from mixport.quantize.graph.roles import Kind
from mixport.quantize.sites.planner import QuantizationPlan
from mixport.records.choices.reconstruction_preset import Grain

_CONTAINERS = ("torch.nn.modules.container.",)
_MOST_LAYERS = 16
"""Of a unit made from several pieces."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A part of the graph with one tensor in and one out.

    Attributes:
        name: module path that its layers share, else that of its first layer.
        nodes: float nodes in graph order, `output` last; constants and sizes are left out.
        input: node whose value enters; it belongs to the unit before, or is the image.
        output: node whose value leaves, before its own quantiser.
        layers: convolutions and linear layers, in graph order.
    """

    name: str
    nodes: tuple[fx.Node, ...]
    input: fx.Node
    output: fx.Node
    layers: tuple[fx.Node, ...]


def find_units(graph: fx.GraphModule, plan: QuantizationPlan, *, grain: Grain = "block") -> tuple[Unit, ...]:
    """Cut the graph into units, in graph order; every node with a value belongs to exactly one.

    Args:
        graph: canonical float graph that `plan` was made for.
        plan: kinds and sites.
        grain: `block` joins pieces of one module; `layer` leaves them as fine as the graph allows.
    """
    nodes = [node for node in graph.graph.nodes if node.op == "call_function" and _has_value(node, plan)]
    pieces = _with_layers(_pieces(graph, nodes, plan), plan)
    if grain == "block":
        pieces = _joined(pieces, plan)
    units: list[Unit] = []
    source = next(node for node in graph.graph.nodes if node.op == "placeholder")
    for piece in pieces:
        layers = tuple(node for node in piece if plan.kinds[node] is Kind.LAYER)
        units.append(
            Unit(name=_name(layers, piece), nodes=tuple(piece), input=source, output=piece[-1], layers=layers)
        )
        source = piece[-1]
    return tuple(units)


def merge_units(units: Iterable[Unit]) -> Unit:
    """Neighbouring units as one (MRECG, arXiv 2303.11906, merges those that are alike and oscillate)."""
    parts = list(units)
    return Unit(
        name=f"{parts[0].name}+{parts[-1].name}" if len(parts) > 1 else parts[0].name,
        nodes=tuple(node for part in parts for node in part.nodes),
        input=parts[0].input,
        output=parts[-1].output,
        layers=tuple(layer for part in parts for layer in part.layers),
    )


def _has_value(node: fx.Node, plan: QuantizationPlan) -> bool:
    """Tensors that depend on the image: no constants, and no sizes of the batch."""
    return plan.kinds[node] is not Kind.CONSTANT and (
        bool(node.meta.get("shape")) or bool(node.meta.get("is_tuple", False))
    )


def _pieces(graph: fx.GraphModule, nodes: list[fx.Node], plan: QuantizationPlan) -> Iterator[list[fx.Node]]:
    """Finest pieces: each ends at a tensor with codes that is the only live one, the last at the model's
    output.
    """
    order = {node: index for index, node in enumerate(graph.graph.nodes)}
    births = {site.tensor for site in plan.sites if site.base is None}
    image = next(node for node in graph.graph.nodes if node.op == "placeholder")
    last_use = {
        node: max((order[user] for user in node.users), default=order[node]) for node in (image, *nodes)
    }
    live = {image}
    piece: list[fx.Node] = []
    for node in nodes:
        piece.append(node)
        live.add(node)
        live = {other for other in live if last_use[other] > order[node]}
        if live == {node} and node in births:
            yield piece
            piece = []
    if piece:
        yield piece


def _with_layers(pieces: Iterable[list[fx.Node]], plan: QuantizationPlan) -> list[list[fx.Node]]:
    """Pieces without a layer join the one that follows; what is left at the end joins the last."""
    found: list[list[fx.Node]] = []
    waiting: list[fx.Node] = []
    for piece in pieces:
        waiting = [*waiting, *piece]
        if any(plan.kinds[node] is Kind.LAYER for node in piece):
            found.append(waiting)
            waiting = []
    if waiting and found:
        found[-1] = [*found[-1], *waiting]
    elif waiting:
        found.append(waiting)
    return found


def _joined(pieces: list[list[fx.Node]], plan: QuantizationPlan) -> list[list[fx.Node]]:
    groups: list[list[list[fx.Node]]] = []
    for piece in pieces:
        if groups and _same_module([*groups[-1], piece], plan):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return [[node for piece in group for node in piece] for group in groups]


def _same_module(pieces: list[list[fx.Node]], plan: QuantizationPlan) -> bool:
    """True where one module is what all are made for: it holds their layers, and adds the residuals itself.

    It is neither a container nor the whole model, and no container lies between it and a layer: a stage of
    blocks is no block.
    """
    nodes = [node for piece in pieces for node in piece]
    stacks = [_stack(node) for node in nodes if plan.kinds[node] is Kind.LAYER]
    if not stacks or len(stacks) > _MOST_LAYERS or any(not stack for stack in stacks):
        return False
    depth = 0
    while all(len(stack) > depth and stack[depth] == stacks[0][depth] for stack in stacks):
        depth += 1
    if depth < 2:  # the first entry is the model itself
        return False
    below = [kind for stack in stacks for _, kind in stack[depth - 1 : -1]]
    if any(kind.startswith(_CONTAINERS) for kind in below):
        return False
    shared = stacks[0][depth - 1]
    sums = [_stack(node) for node in nodes if plan.kinds[node] is Kind.ADD]
    return all(bool(stack) and stack[-1] == shared for stack in sums)


def _stack(node: fx.Node) -> list[tuple[str, str]]:
    """(path, type) of the modules around a node, outermost first."""
    stack: Mapping[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    return [
        (path, kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}")
        for path, kind in stack.values()
    ]


def _name(layers: tuple[fx.Node, ...], piece: list[fx.Node]) -> str:
    paths = [module_path(node).split(".") for node in layers] or [[piece[0].name]]
    shared = paths[0]
    for path in paths[1:]:
        length = next(
            (i for i, (a, b) in enumerate(zip(shared, path, strict=False)) if a != b),
            min(len(shared), len(path)),
        )
        shared = shared[:length]
    return ".".join(shared) or ".".join(paths[0]) or layers[0].name
