"""Which channels may be scaled by a positive factor of their own, and which must share one: from the graph
alone.

A layer can take a factor for each of its outputs, and the layers that read them can take it back. In between,
a Relu, a maximum, a mean over places and data movement let it pass; where tensors are added it must be the
same for both; a table can take one factor for all that it gives; everything else fixes it at 1. The graph is
run once on numbers of factors in the place of values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, fx

from mixport.model.programs.fx_graph import aten, shape_of, tensor_arg
from mixport.quantize.graph.marks import CHANNEL_BOUNDS
from mixport.quantize.graph.roles import Kind, clamp_bounds
from mixport.quantize.sites.code_flow import CodeFlow

FIXED, _ZERO = 0, -1
"""Numbers that are no factor's: a value that keeps its scale, and the zeros of a padding, which every factor
leaves alone.
"""

Numbers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Channels:
    """Factors along one axis of a tensor; FIXED where there can be none."""

    axis: int
    numbers: Numbers


@dataclass(frozen=True, kw_only=True)
class Factors:
    """Every factor of a graph.

    Attributes:
        gives: of the outputs of each layer, [O].
        reads: of the inputs of each layer, [I].
        tables: of the last function of each table, one for all it gives.
        carried: of the tensors that have codes, where their channels are told apart by one axis.
    """

    gives: Mapping[fx.Node, Numbers]
    reads: Mapping[fx.Node, Numbers]
    tables: Mapping[fx.Node, int]
    carried: Mapping[fx.Node, Channels]


def find_factors(graph: fx.GraphModule, flow: CodeFlow) -> Factors:
    """Number the factors of a canonical float graph with recorded shapes.

    Raises:
        RuntimeError, IndexError, ValueError: a float operator does not take numbers of factors in the place
            of values.
    """
    placeholder = next(node for node in flow.nodes if node.op == "placeholder")
    run = _Numbering(graph, flow)
    with torch.no_grad():
        run.run(torch.zeros(shape_of(placeholder)))
    # Channels that are told apart by no axis cannot be looked at one by one: they keep their scale.
    for numbers in run.mixed:
        run.fix(map(int, numbers))
    return Factors(
        gives={node: run.roots(numbers) for node, numbers in run.gives.items()},
        reads={node: run.roots(numbers) for node, numbers in run.reads.items()},
        tables={node: run.root(number) for node, number in run.tables.items()},
        carried={
            node: Channels(axis=one.axis, numbers=run.roots(one.numbers)) for node, one in run.carried.items()
        },
    )


class _Numbering(fx.Interpreter):
    """Runs a graph on numbers of factors."""

    def __init__(self, graph: fx.GraphModule, flow: CodeFlow) -> None:
        super().__init__(graph)
        self.flow = flow
        self.parents = [FIXED]
        self.gives: dict[fx.Node, Numbers] = {}
        self.reads: dict[fx.Node, Numbers] = {}
        self.tables: dict[fx.Node, int] = {}
        self.carried: dict[fx.Node, Channels] = {}
        self.mixed: list[Numbers] = []
        births = {flow.birth(operand) for node in flow.integer for operand in flow.code_operands(node)}
        # A concat's operands have the codes.
        self._births = {node for node in births if flow.kinds[node] is not Kind.CONCAT}

    # -- factors ---------------------------------------------------------------------------------------------

    def root(self, number: int) -> int:
        """The factor that this one has become."""
        while self.parents[number] != number:
            self.parents[number] = self.parents[self.parents[number]]
            number = self.parents[number]
        return number

    def roots(self, numbers: Numbers) -> Numbers:
        """With the zeros of paddings FIXED."""
        return np.array([self.root(max(int(number), FIXED)) for number in numbers], np.int64)

    def join(self, a: int, b: int) -> None:
        """Make two factors one."""
        low, high = sorted((self.root(a), self.root(b)))
        self.parents[high] = low  # FIXED is the lowest

    def fix(self, numbers: Iterable[int]) -> None:
        """Keep their scale."""
        for number in numbers:
            if number != _ZERO:
                self.join(number, FIXED)

    def _new(self, count: int) -> Numbers:
        first = len(self.parents)
        self.parents += range(first, first + count)
        return np.arange(first, first + count)

    # -- nodes -----------------------------------------------------------------------------------------------

    def run_node(self, n: fx.Node) -> Any:
        """Numbers of one node's factors, in its shape."""
        value = self._numbers(n)
        if n in self._births and isinstance(value, Tensor):
            self._keep(n, value)
        return value

    def _numbers(self, n: fx.Node) -> Any:
        kind = self.flow.kinds[n]
        if n.op in {"placeholder", "get_attr"} or kind in {Kind.CONSTANT, Kind.CONCAT}:
            return super().run_node(n)
        if kind is Kind.MOVE:
            return self._move(n)
        if kind is Kind.LAYER:
            return self._layer(n)
        if kind is Kind.CLAMP and CHANNEL_BOUNDS not in n.meta and clamp_bounds(n) == (0.0, None):
            return self.env[tensor_arg(n, 0)]
        if kind is Kind.POOL:
            return self._one_a_channel(self.env[tensor_arg(n, 0)]).amax((-2, -1), keepdim=True)
        if kind is Kind.ADD:
            return self._add(self.env[tensor_arg(n, 0)], self.env[tensor_arg(n, 1)])
        if kind is Kind.MULTIPLY:
            return self._multiply(n)
        return self._other(n)

    def _move(self, n: fx.Node) -> Any:
        if n.target is aten.constant_pad_nd.default:
            return F.pad(self.env[tensor_arg(n, 0)], n.args[1], value=float(_ZERO))  # type: ignore[arg-type]
        if n.target is aten.max_pool2d.default:
            self._one_a_channel(self.env[tensor_arg(n, 0)])
        return super().run_node(n)

    def _layer(self, n: fx.Node) -> Tensor:
        shape = super().run_node(n).shape
        axis = -1 if n.target is aten.linear.default else 1
        read: Tensor = self.env[tensor_arg(n, 0)].movedim(axis, 0)
        rows = read.reshape(len(read), -1)
        self._join_rows(rows)
        self.reads[n] = rows.amax(1).numpy().astype(np.int64)
        self.gives[n] = self._new(shape[axis])
        wide = [1] * len(shape)
        wide[axis] = -1
        return torch.as_tensor(self.gives[n], dtype=torch.float32).view(wide).expand(shape)

    def _add(self, a: Tensor, b: Tensor) -> Tensor:
        shape = np.broadcast_shapes(a.shape, b.shape)
        a, b = a.expand(shape), b.expand(shape)
        few_a, few_b = _without_places(a, b)
        pairs = np.unique(torch.stack([few_a.flatten(), few_b.flatten()], 1).numpy().astype(np.int64), axis=0)
        for one, other in pairs.tolist():
            if _ZERO not in (one, other):
                self.join(one, other)
        return torch.where(a == _ZERO, b, a)

    def _multiply(self, n: fx.Node) -> Tensor:
        """The smaller operand, or the one that a table gives, is the gate, whose scale stays."""
        nodes = [tensor_arg(n, index) for index in (0, 1)]
        a, b = (self.env[node] for node in nodes)
        gates = [self.flow.kinds[self.flow.birth(node)] is Kind.UNARY for node in nodes]
        shape = np.broadcast_shapes(a.shape, b.shape)
        if a.numel() == b.numel() and gates[0] == gates[1]:
            self.fix(_distinct(a) | _distinct(b))
            return torch.zeros(shape)
        gate, other = (a, b) if a.numel() < b.numel() or (a.numel() == b.numel() and gates[0]) else (b, a)
        self.fix(_distinct(gate))
        return other.expand(shape)

    def _other(self, n: fx.Node) -> Any:
        """Everything that reads values as they are. A table gives one factor to all of its own, other float
        operators none.
        """
        value = super().run_node(n)
        for source in n.all_input_nodes:
            given = self.env[source]
            if isinstance(given, Tensor) and self.flow.kinds[source] is not Kind.CONSTANT:
                self.fix(_distinct(given))
        if self.flow.kinds[n] is Kind.UNARY:
            self.tables[n] = int(self._new(1)[0])
            return torch.full_like(value, self.tables[n])
        if isinstance(value, (tuple, list)):
            return tuple(_fixed(one) for one in cast("tuple[Any, ...]", value))
        return _fixed(value)

    def _one_a_channel(self, value: Tensor) -> Tensor:
        """Places of one channel are compared or added: they share their factor."""
        self._join_rows(value.reshape(-1, value.shape[-2] * value.shape[-1]))
        return value

    def _join_rows(self, rows: Tensor) -> None:
        highest = rows.amax(1, keepdim=True)
        for row in rows[((rows != highest) & (rows != _ZERO)).any(1)]:
            first, *others = _distinct(row) - {_ZERO}
            for other in others:
                self.join(first, other)

    def _keep(self, n: fx.Node, value: Tensor) -> None:
        for axis in (1, -1):
            if value.dim() < 2 or value.shape[axis] < 1:
                continue
            rows = value.movedim(axis, 0).reshape(value.shape[axis], -1)
            if bool((rows == rows[:, :1]).all()):
                self.carried[n] = Channels(axis=axis, numbers=rows[:, 0].numpy().astype(np.int64))
                return
        self.mixed.append(np.array(sorted(_distinct(value)), np.int64))


def _without_places(*values: Tensor) -> tuple[Tensor, ...]:
    """Tensors of one shape without the places over which none of them varies: one of a channel is enough, and
    much quicker to sort.
    """
    axes = {4: (-2, -1), 3: (1,)}.get(values[0].dim(), ())
    for axis in axes:
        firsts = tuple(value.narrow(axis, 0, 1) for value in values)
        if all(bool((value == first).all()) for value, first in zip(values, firsts, strict=True)):
            values = firsts
    return values


def _distinct(value: Tensor) -> set[int]:
    return set(map(int, np.unique(_without_places(value)[0].numpy()))) if value.numel() else set()


def _fixed(value: Any) -> Any:
    return torch.zeros_like(value) if isinstance(value, Tensor) and value.is_floating_point() else value
