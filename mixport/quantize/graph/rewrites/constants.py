"""Whatever does not depend on the image is computed once, here, by torch: position codes, masks, position
bias tables.

Left in the graph, torch's exporter would compute it a second time with other kernels, whose last bits differ.
Two steps:

1. Calls that read constants only, or nothing at all (arange, ones, zeros, full, eye), become constants.
2. Calls that also read the batch size (a position code repeated for every image) become the constant of one
   image. Readers that broadcast take it as it is; for others it is expanded, which moves data and computes
   nothing.
"""

# torch's tags and symbolic sizes are typed in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from mixport.model.programs.fx_graph import (
    add_constant,
    argument,
    aten,
    call,
    clean,
    constant,
    module_path,
    operator_of,
    shape_of,
    tensor_arg,
)
from mixport.records.decision import Decision

_LARGEST_FOLDED = 1 << 26
"""Elements; a larger constant stays a computation."""

_BATCHES = (1, 2, 3)
"""Batch sizes at which a value that reads the batch size is looked at: it must be that of one image,
repeated.
"""

_UNINITIALISED = frozenset(
    {
        aten.empty.memory_format,
        aten.empty_like.default,
        aten.new_empty.default,
        aten.empty_strided.default,
        aten.new_empty_strided.default,
    }
)
"""Memory without values; torch fills it before it is read. Zeros here, so that nothing depends on what lay
there.
"""

_BROADCASTING = frozenset(
    {
        aten.add.Tensor,
        aten.sub.Tensor,
        aten.mul.Tensor,
        aten.div.Tensor,
        aten.maximum.default,
        aten.minimum.default,
        aten.where.self,
        aten.masked_fill.Scalar,
        aten.scaled_dot_product_attention.default,
    }
)
"""Readers for which an operand with a leading axis of 1 stands for all images; see `_broadcasts`."""


_FILLED: Mapping[Any, float | None] = MappingProxyType(
    {
        aten.zeros_like.default: 0,
        aten.ones_like.default: 1,
        aten.full_like.default: None,
        aten.new_zeros.default: 0,
        aten.new_ones.default: 1,
        aten.new_full.default: None,
    }
)
"""Operators that read another tensor's shape and type only -> what they fill with, None where it is an
argument.
"""


def fold_constants(graph: fx.GraphModule) -> list[Decision]:
    """Both steps. A value that cannot become a constant stays a computation, with a decision that says
    why.
    """
    _forget_templates(graph)
    return [*_fold(graph), *_fold_batch(graph)]


def _forget_templates(graph: fx.GraphModule) -> None:
    """ones_like(x) and new_zeros(x, sizes) as full(sizes): the values of x take no part."""
    for node in list(graph.graph.nodes):
        value: Any = node.meta.get("val")
        if node.target not in _FILLED or not isinstance(value, Tensor):
            continue
        template, fill = tensor_arg(node, 0), _FILLED[node.target]
        is_like = "_like" in str(node.target)
        fill = argument(node, 1 if is_like else 2, "fill_value") if fill is None else fill
        sizes = (
            [_size(graph, template, axis, node) for axis in range(value.dim())] if is_like else node.args[1]
        )
        with graph.graph.inserting_before(node):
            made = graph.graph.call_function(aten.full.default, (sizes, fill), {"dtype": value.dtype})
        made.meta.update(node.meta)
        node.replace_all_uses_with(made)
        graph.graph.erase_node(node)


def _size(graph: fx.GraphModule, x: fx.Node, axis: int, before: fx.Node) -> Any:
    """Length of an axis: a number, or a node that gives it."""
    size: Any = x.meta["val"].shape[axis]
    if isinstance(size, int):
        return size
    with graph.graph.inserting_before(before):
        made = graph.graph.call_function(aten.sym_size.int, (x, axis))
    made.meta["val"] = size
    return made


def _fold(graph: fx.GraphModule) -> list[Decision]:
    decisions: list[Decision] = []
    known = _depending_on(graph, sizes=frozenset())
    for node, value in _values(graph, known, sizes={}).items():
        if value.numel() > _LARGEST_FOLDED:
            decisions.append(_left(node, f"{value.numel()} values, allowed {_LARGEST_FOLDED}"))
        else:
            node.replace_all_uses_with(add_constant(graph, value.contiguous(), name=node.name, before=node))
    clean(graph)
    return decisions


def _fold_batch(graph: fx.GraphModule) -> list[Decision]:
    image = next(node for node in graph.graph.nodes if node.op == "placeholder")
    sizes = _sizes(graph, image)
    known = _depending_on(graph, sizes=frozenset(sizes))
    if not sizes or not _frontier(known):
        return []
    decisions: list[Decision] = []
    try:
        each = [
            _values(graph, known, sizes={node: size(batch) for node, size in sizes.items()})
            for batch in _BATCHES
        ]
    except (RuntimeError, ValueError, IndexError) as error:  # something that only some batch sizes allow
        return [
            _left(node, f"it cannot be computed for every batch size: {error}") for node in _frontier(known)
        ]
    for node, single in each[0].items():
        if node.target is aten.expand.default and tensor_arg(node, 0).op == "get_attr":
            readers = [
                user for user in node.users if _broadcasts(user, node)
            ]  # others need it expanded, as it is
        else:
            readers = [user for user in node.users if user not in known]
        if not readers:
            continue
        if single.numel() > _LARGEST_FOLDED:
            decisions.append(_left(node, f"{single.numel()} values, allowed {_LARGEST_FOLDED}"))
        elif _is_fixed(single, [values[node] for values in each]):
            node.replace_all_uses_with(add_constant(graph, single.contiguous(), name=node.name, before=node))
        elif _is_of_one_image(single, [values[node] for values in each]):
            _use_single(graph, node, single.contiguous(), readers, image)
        else:
            decisions.append(_left(node, "its value depends on the batch size"))
    clean(graph)
    return decisions


def _left(node: fx.Node, why: str) -> Decision:
    return Decision(
        where=module_path(node) or node.name,
        what=f"{node.name} computed at run time, though it reads no image",
        why=why,
    )


def _depending_on(graph: fx.GraphModule, *, sizes: frozenset[fx.Node]) -> dict[fx.Node, bool]:
    """Calls that read constants and `sizes` only, at least one size where there are any; the value tells
    whether a tensor comes out.

    Random numbers are no constants.
    """
    found: dict[fx.Node, bool] = {}
    reached: set[fx.Node] = set(sizes)
    for node in graph.graph.nodes:
        if node.op != "call_function" or node in sizes or _is_random(node) or _is_size(node):
            continue
        sources = node.all_input_nodes
        if not all(source in reached or constant(graph, source) is not None for source in sources):
            continue
        if sizes and not any(source in reached for source in sources):
            continue
        found[node] = not node.meta.get("is_tuple", False)
        reached.add(node)
    return found


def _frontier(known: Mapping[fx.Node, bool]) -> list[fx.Node]:
    """Tensors among `known` that something outside reads."""
    return [
        node
        for node, is_tensor in known.items()
        if is_tensor and any(user not in known for user in node.users)
    ]


def _values(
    graph: fx.GraphModule, known: Mapping[fx.Node, bool], *, sizes: Mapping[fx.Node, int]
) -> dict[fx.Node, Tensor]:
    """Values of the frontier, in graph order. What lies before it is forgotten as soon as nothing needs
    it.
    """
    frontier = _frontier(known)
    waiting = {node: sum(user in known for user in node.users) for node in known}
    held: dict[fx.Node, Any] = {}

    def value_of(source: fx.Node) -> Any:
        if source in sizes:
            return sizes[source]
        return held[source] if source in held else constant(graph, source)

    for node in known:
        args, kwargs = map_arg((node.args, node.kwargs), value_of)
        with torch.no_grad():
            value = operator_of(node)(*args, **kwargs)
        held[node] = torch.zeros_like(value) if node.target in _UNINITIALISED else value
        for source in node.all_input_nodes:
            if source in waiting:
                waiting[source] -= 1
                if waiting[source] == 0 and source not in frontier:
                    held.pop(source, None)
    return {node: held[node] for node in frontier if isinstance(held[node], Tensor)}


def _is_random(node: fx.Node) -> bool:
    tags: Iterable[Any] = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded in tags


def _is_size(node: fx.Node) -> bool:
    """A number, not a tensor: arithmetic of shapes."""
    value = node.meta.get("val")
    if value is not None:
        return isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool, int, float, bool))
    return node.target is aten.sym_size.int


def _sizes(graph: fx.GraphModule, image: fx.Node) -> dict[fx.Node, Callable[[int], int]]:
    """Numbers that follow from the batch size alone, each as a function of it; empty where the batch is
    fixed.
    """
    value: Any = image.meta.get("val")
    batch: Any = None if value is None else value.shape[0]
    if not isinstance(batch, torch.SymInt):
        return {}
    symbol: Any = batch.node.expr
    found: dict[fx.Node, Callable[[int], int]] = {}
    for node in graph.graph.nodes:
        size: Any = node.meta.get("val")
        if node.op != "call_function" or not isinstance(size, (torch.SymInt, int)):
            continue
        expression: Any = size.node.expr if isinstance(size, torch.SymInt) else None
        if expression is None:
            found[node] = _always(int(size))
        elif expression.free_symbols <= {symbol}:
            found[node] = _at(expression, symbol)
    return found


def _always(size: int) -> Callable[[int], int]:
    return lambda batch: size


def _at(expression: Any, symbol: Any) -> Callable[[int], int]:
    return lambda batch: int(expression.subs({symbol: batch}))


def _is_fixed(single: Tensor, each: Sequence[Tensor]) -> bool:
    """True where the batch size takes no part after all."""
    return all(value.shape == single.shape and torch.equal(value, single) for value in each)


def _is_of_one_image(single: Tensor, each: Sequence[Tensor]) -> bool:
    """True where the value for n images is that for one, n times along the first axis."""
    if single.dim() == 0:
        return False
    repeated = [single.repeat(batch, *[1] * (single.dim() - 1)) for batch in _BATCHES]
    return all(_equals(value, expected) for value, expected in zip(each, repeated, strict=True))


def _equals(value: Tensor, expected: Tensor) -> bool:
    """Sums of float32 may differ in their last bits with the number of rows: by 1e-5 of the largest value."""
    if value.shape != expected.shape or value.numel() == 0 or not value.is_floating_point():
        return value.shape == expected.shape and torch.equal(value, expected)
    largest = float(expected.abs().nan_to_num(posinf=0.0).max())
    return torch.allclose(value, expected, rtol=0.0, atol=1e-5 * largest, equal_nan=True)


def _use_single(
    graph: fx.GraphModule, node: fx.Node, single: Tensor, readers: Sequence[fx.Node], image: fx.Node
) -> None:
    made = add_constant(graph, single, name=node.name, before=node)
    expanded: fx.Node | None = None
    for reader in readers:
        if single.shape[0] == 1 and _broadcasts(reader, node):
            reader.replace_input_with(node, made)
            continue
        if expanded is None:
            expanded = _for_every_image(graph, made, node, image)
        reader.replace_input_with(node, expanded)


def _for_every_image(graph: fx.GraphModule, single: fx.Node, node: fx.Node, image: fx.Node) -> fx.Node:
    """The constant of one image, [k, ...], as [n * k, ...]."""
    batch = _size(graph, image, 0, node)
    first, *rest = shape_of(single)
    target, sizes = (
        (aten.expand.default, [-1] * len(rest)) if first == 1 else (aten.repeat.default, [1] * len(rest))
    )
    made = call(graph, target, single, [batch, *sizes], before=node, like=node)
    made.meta.update({key: node.meta[key] for key in ("shape", "is_float", "val") if key in node.meta})
    return made


def _broadcasts(reader: fx.Node, node: fx.Node) -> bool:
    """True where another operand of `reader` has all images, so that a leading 1 in `node` changes
    nothing.
    """
    if reader.target not in _BROADCASTING or any(node in _nodes(value) for value in reader.kwargs.values()):
        return False
    places = [i for i, argument in enumerate(reader.args) if argument is node]
    shape = shape_of(reader)
    if reader.target is aten.scaled_dot_product_attention.default:
        return places == [3] and len(shape_of(node)) == len(shape)
    if reader.target is aten.masked_fill.Scalar and places != [1]:
        return False
    others = [operand for operand in reader.args if isinstance(operand, fx.Node) and operand is not node]
    return len(shape_of(node)) == len(shape) and any(
        len(shape_of(o)) == len(shape) and shape_of(o)[0] == shape[0] for o in others
    )


def _nodes(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    map_arg(value, found.append)
    return found
