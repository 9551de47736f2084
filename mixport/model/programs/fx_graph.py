"""Small operations on torch.fx graphs that every rewrite needs: typed arguments, constants, names, shapes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from mixport.records.errors import InvariantError

aten = torch.ops.aten


def tensor_arg(node: fx.Node, index: int) -> fx.Node:
    """The node behind a positional argument that is always a tensor.

    Raises:
        InvariantError: the argument is missing or no node.
    """
    value = node.args[index] if index < len(node.args) else None
    if not isinstance(value, fx.Node):
        raise InvariantError(
            f"argument {index} of {node.name} ({node.target}) is {value!r}, expected a tensor"
        )
    return value


def tensor_list_arg(node: fx.Node, index: int) -> list[fx.Node]:
    """The nodes behind a positional argument that is always a list of tensors (the operands of a concat)."""
    return list(cast("list[fx.Node]", node.args[index]))


def argument(node: fx.Node, index: int, name: str, default: Any = None) -> Any:
    """An argument by position or by keyword; `default` where it is given neither way."""
    return node.args[index] if index < len(node.args) else node.kwargs.get(name, default)


def arguments(node: fx.Node, *defaults: Any, after: int = 0) -> tuple[Any, ...]:
    """Positional arguments, completed by the operator's `defaults`, which stand behind its first `after`
    arguments.
    """
    return (*node.args, *defaults[len(node.args) - after :])


def each_axis(sizes: Sequence[int], rank: int) -> list[int]:
    """One number for each axis of space, of a list that holds one for all or one for each."""
    return [int(sizes[i % len(sizes)]) for i in range(rank)]


def operator_of(node: fx.Node) -> Callable[..., Any]:
    """The function that a call_function node calls."""
    return cast("Callable[..., Any]", node.target)


def constant(graph: fx.GraphModule, node: Any) -> Tensor | None:
    """The tensor behind a get_attr node, else None."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value: Any = graph
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value.detach() if isinstance(value, Tensor) else None


def known_constant(graph: fx.GraphModule, node: Any) -> Tensor:
    """The tensor behind a node whose kind says that it is constant.

    Raises:
        InvariantError: it is not.
    """
    value = constant(graph, node)
    if value is None:
        raise InvariantError(f"{node} is not constant")
    return value


def add_constant(graph: fx.GraphModule, value: Tensor, *, name: str, before: fx.Node) -> fx.Node:
    """Register `value` as a buffer (name made unique) and return its get_attr node, placed before
    `before`.
    """
    base = "mixport_" + "".join(c if c.isascii() and c.isalnum() else "_" for c in name)
    unique, n = base, 0
    while hasattr(graph, unique):
        n += 1
        unique = f"{base}_{n}"
    graph.register_buffer(unique, value)
    with graph.graph.inserting_before(before):
        node = graph.graph.get_attr(unique)
    node.meta["shape"] = tuple(value.shape)
    return node


class SharedConstants:
    """Constants of a graph, each content registered once: a module that is called several times has one set
    of them.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        self._held: dict[tuple[torch.dtype, tuple[int, ...], bytes], str] = {}

    def add(self, value: Tensor, *, name: str, before: fx.Node) -> fx.Node:
        """As `add_constant`; reads what is there already where type, shape and values are the same."""
        key = (value.dtype, tuple(value.shape), hashlib.sha256(value.contiguous().numpy().tobytes()).digest())
        if key not in self._held:
            node = add_constant(self.graph, value, name=name, before=before)
            self._held[key] = str(node.target)
            return node
        with self.graph.graph.inserting_before(before):
            node = self.graph.graph.get_attr(self._held[key])
        node.meta["shape"] = tuple(value.shape)
        return node


def call(graph: fx.GraphModule, target: Any, *args: Any, before: fx.Node, like: fx.Node) -> fx.Node:
    """Insert a call before `before`; provenance (module stack) is taken from `like`."""
    with graph.graph.inserting_before(before):
        node = graph.graph.call_function(target, args)
    for key in ("nn_module_stack", "stack_trace", "source_fn_stack"):
        if key in like.meta:
            node.meta[key] = like.meta[key]
    _infer_shape(node)
    return node


def _infer_shape(node: fx.Node) -> None:
    """Shape of a new node, for later rewrites of the same sweep; a call with symbolic sizes waits for the
    next recording.
    """

    def stand_in(source: fx.Node) -> Tensor:
        return torch.empty(shape_of(source), device="meta")

    try:
        arguments_: Any = map_arg(node.args, stand_in)
        _record(node, operator_of(node)(*arguments_))
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return


def module_path(node: fx.Node) -> str:
    """Dotted path of the module that made the node, empty at the top level.

    What a file cannot hold is written as _: what is not printable, a backslash, and an end that an .npz adds
    itself.
    """
    stack: Mapping[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    written = "".join(c if c.isprintable() and c != "\\" else "_" for c in paths[-1]) if paths else ""
    return f"{written.removesuffix('.npy')}_npy" if written.endswith(".npy") else written


def only_user(node: fx.Node) -> fx.Node | None:
    """The single user of a node, None when it has none or several."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape recorded for the traced batch; empty for values that are no tensor."""
    return node.meta.get("shape", ())


class _ShapeRecorder(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        _record(n, value)
        return value


def _record(node: fx.Node, value: Any) -> None:
    """is_float means float32: doubles, halves and complex numbers take no part in quantisation."""
    node.meta["shape"] = tuple(value.shape) if isinstance(value, Tensor) else ()
    node.meta["is_float"] = isinstance(value, Tensor) and value.dtype is torch.float32
    node.meta["is_tuple"] = isinstance(value, (tuple, list))


def record_shapes(graph: fx.GraphModule, example: Tensor) -> None:
    """Run once and note every tensor's shape in node.meta["shape"] (batch axis: that of the example)."""
    with torch.no_grad():
        _ShapeRecorder(graph).run(example)


def clean(graph: fx.GraphModule) -> None:
    """Remove dead nodes, check the graph, regenerate its code."""
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()


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
