"""Run one unit of the float graph: as it is, or with quantisers and other weights in the places that the plan names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.node import map_arg

from mixport.quantize.fx_graph import aten, constant, operator_of
from mixport.quantize.plan import Plan, SitePlan
from mixport.quantize.reconstruction.units import Unit
from mixport.quantize.roles import Kind

_TWO_BATCHES = (3, 5)
"""Numbers of images that no other axis is likely to follow."""


class Quantised(Protocol):
    """What replaces float values and weights while a unit runs quantised."""

    def activation(self, site: SitePlan, value: Tensor) -> Tensor:
        """The fake-quantised value of a site, of `value`'s shape."""
        ...

    def weights(self, layer: fx.Node) -> tuple[Tensor, Tensor | None] | None:
        """Fake-quantised weight and bias of a layer; None leaves the float ones."""
        ...


class Executor:
    """Runs units of one canonical float graph; units of the same graph share their constants.

    Args:
        graph: canonical float graph.
        plan: made for it.
        input_shape: [1, 3, H, W] of the model.
        dynamic_batch: True where the graph holds for every batch; else images run one by one.
        device: where constants live and units run.
    """

    def __init__(
        self, graph: fx.GraphModule, plan: Plan, *, input_shape: tuple[int, ...], dynamic_batch: bool, device: torch.device
    ) -> None:
        self.graph, self.plan, self.device = graph, plan, device
        self._dynamic_batch = dynamic_batch
        self._input_shape = input_shape
        self._first = {site.tensor: site for site in plan.sites if site.base is None}
        self._further = {pair: site for site in plan.sites if site.base is not None for pair in site.consumers}
        self._constants = self._fold_constants()
        self._has_sizes = any(_is_size(node) for node in graph.graph.nodes)
        self._sizes: dict[int, Mapping[fx.Node, Any]] = {}
        self._shapes: dict[int, Mapping[fx.Node, tuple[int, ...]]] = {}

    def run(self, unit: Unit, x: Tensor, *, images: int, quantised: Quantised | None = None) -> Tensor:
        """Value of the unit's output before its own quantiser.

        Args:
            unit: of this graph.
            x: value of the unit's input before its quantiser.
            images: how many images x stands for; rows of a tensor may be windows or tokens.
            quantised: None runs the float unit.
        """
        if images > 1 and not self._dynamic_batch:
            parts = torch.chunk(x, images)
            return torch.cat([self.run(unit, part, images=1, quantised=quantised) for part in parts])
        sizes = self._sizes_for(images)
        values: dict[fx.Node, Any] = {unit.input: self._read(unit.input, x, quantised)}

        def operand(source: fx.Node) -> Any:
            if source in values:
                return values[source]
            return self._constants[source] if source in self._constants else sizes[source]

        for node in unit.nodes:

            def read(source: fx.Node, at: fx.Node = node) -> Any:
                return self._operand(at, source, operand(source), quantised)

            args, kwargs = map_arg((node.args, node.kwargs), read)
            if quantised is not None and self.plan.kinds[node] is Kind.LAYER:
                replaced = quantised.weights(node)
                args = args if replaced is None else (args[0], *replaced, *args[3:])
            value = _differentiable(operator_of(node))(*args, **kwargs)
            values[node] = value if node is unit.output else self._read(node, value, quantised)
        return values[unit.output]

    def sites(self, unit: Unit) -> list[SitePlan]:
        """Sites whose values the unit quantises: of its input and of its inner tensors, not of its output."""
        inside = {unit.input, *unit.nodes} - {unit.output}
        consumers = set(unit.nodes)
        first = [site for site in self.plan.sites if site.base is None and site.tensor in inside]
        further = [site for site in self.plan.sites if site.base is not None and any(node in consumers for node, _ in site.consumers)]
        return [*first, *further]

    def _read(self, node: fx.Node, value: Any, quantised: Quantised | None) -> Any:
        site = self._first.get(node)
        return value if quantised is None or site is None else quantised.activation(site, value)

    def _operand(self, node: fx.Node, source: fx.Node, value: Any, quantised: Quantised | None) -> Any:
        site = self._further.get((node, source))
        return value if quantised is None or site is None else quantised.activation(site, value)

    def _fold_constants(self) -> dict[fx.Node, Any]:
        """Values of all nodes that depend on no activation."""
        values: dict[fx.Node, Any] = {}
        for node in self.graph.graph.nodes:
            if node.op == "get_attr":
                found = constant(self.graph, node)
                if found is not None:
                    values[node] = found.to(self.device)
                continue
            is_call = node.op == "call_function" and self.plan.kinds[node] is Kind.CONSTANT
            if is_call and all(source in values for source in node.all_input_nodes):
                args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = operator_of(node)(*args, **kwargs)
        return values

    def is_by_image(self, node: fx.Node) -> bool:
        """True where the first axis of a tensor has the images one behind the other, and no other axis depends on their number."""
        if not self._dynamic_batch:
            return True
        for images in _TWO_BATCHES:
            self._record(images)
        few, more = (self._shapes[images][node] for images in _TWO_BATCHES)
        return len(few) > 0 and few[1:] == more[1:] and few[0] * _TWO_BATCHES[1] == more[0] * _TWO_BATCHES[0]

    def _sizes_for(self, images: int) -> Mapping[fx.Node, Any]:
        """Values of the nodes that are no tensors (sizes of the batch axis), for a number of images."""
        if not self._has_sizes:
            return {}
        self._record(images)
        return self._sizes[images]

    def _record(self, images: int) -> None:
        """Note shapes and sizes for a number of images, once."""
        if images in self._sizes:
            return
        recorder = _ShapeRecorder(self.graph)
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            recorder.run(torch.empty((images, *self._input_shape[1:])))
        self._sizes[images], self._shapes[images] = recorder.sizes, recorder.shapes


def _is_size(node: fx.Node) -> bool:
    is_tensor = bool(node.meta.get("shape")) or node.meta.get("is_tuple", False) or node.meta.get("is_float", False)
    return node.op == "call_function" and not is_tensor


def _differentiable(operator: Callable[..., Any]) -> Callable[..., Any]:
    """The operator itself, or one with the same values and a derivative: a slice assignment leaves a copy without one."""
    return _copied if operator is aten.copy.default else operator


def _copied(like: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    return source.to(like.dtype).expand_as(like)


def in_float32(device: torch.device) -> AbstractContextManager[None]:
    """On CUDA, convolutions in float32 proper, and by algorithms that give the same sum each time."""
    if device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


class _ShapeRecorder(fx.Interpreter):
    """Runs the graph on fake tensors: shapes alone, no arithmetic.

    Attributes:
        sizes: values of the nodes that are no tensors.
        shapes: of those that are.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.sizes: dict[fx.Node, Any] = {}
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n] = tuple(value.shape)
        elif _is_size(n):
            self.sizes[n] = value
        return value
