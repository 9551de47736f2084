"""Run one unit of the float graph: as it is, or with quantisers and other weights in the places that the plan
names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, cast

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map_only

from mixport.model.programs.fx_graph import aten, constant, operator_of
from mixport.quantize.graph.roles import Kind
from mixport.quantize.learn.units.units import Unit
from mixport.quantize.sites.planner import QuantizationPlan, SitePlan

_IMAGES = 3
"""Behind one another and next to one another differ from two on."""
_ALIKE = 1e-2
"""Mean squared difference over that of the images."""


class Quantised(Protocol):
    """What replaces float values and weights while a unit runs quantised."""

    def activation(self, site: SitePlan, value: Tensor) -> Tensor:
        """The fake-quantised value of a site, of `value`'s shape."""
        ...

    def weights(self, layer: fx.Node) -> tuple[Tensor, Tensor | None] | None:
        """Weight and bias of a layer as the float values of their integers; None leaves the float ones."""
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
        self,
        graph: fx.GraphModule,
        plan: QuantizationPlan,
        *,
        input_shape: tuple[int, ...],
        dynamic_batch: bool,
        device: torch.device,
    ) -> None:
        self.graph, self.plan, self.device = graph, plan, device
        self._dynamic_batch = dynamic_batch
        self._input_shape = input_shape
        self._first = {site.tensor: site for site in plan.sites if site.base is None}
        self._further = {
            pair: site for site in plan.sites if site.base is not None for pair in site.consumers
        }
        self._constants = self._fold_constants()
        self._has_sizes = any(_is_size(node) for node in graph.graph.nodes)
        self._sizes: dict[int, Mapping[fx.Node, Any]] = {}

    def run(
        self,
        unit: Unit,
        x: Tensor,
        *,
        images: int,
        quantised: Quantised | None = None,
        watch: Mapping[fx.Node, Callable[[Tensor], None]] = MappingProxyType({}),
    ) -> Tensor:
        """Value of the unit's output before its own quantiser.

        Args:
            unit: of this graph.
            x: value of the unit's input before its quantiser.
            images: how many images x stands for; rows of a tensor may be windows or tokens.
            quantised: None runs the float unit.
            watch: layers of the unit, and what is told the tensor that each reads; image by image where the
                batch is fixed.
        """
        if images > 1 and not self._dynamic_batch:
            parts = torch.chunk(x, images)
            return torch.cat(
                [self.run(unit, part, images=1, quantised=quantised, watch=watch) for part in parts]
            )
        sizes = self._sizes_for(images)
        values: dict[fx.Node, Any] = {unit.input: self._read(unit.input, x, quantised)}

        def operand(source: fx.Node) -> Any:
            return values[source] if source in values else self._constant(source, sizes)

        for node in unit.nodes:

            def read(source: fx.Node, at: fx.Node = node) -> Any:
                return self._operand(at, source, operand(source), quantised)

            args, kwargs = map_arg((node.args, node.kwargs), read)
            if quantised is not None and self.plan.kinds[node] is Kind.LAYER:
                replaced = quantised.weights(node)
                args = args if replaced is None else (args[0], *replaced, *args[3:])
            if node in watch:
                watch[node](cast("Tensor", args[0]))
            value = _differentiable(operator_of(node))(*args, **self._here(kwargs))
            values[node] = value if node is unit.output else self._read(node, value, quantised)
        return values[unit.output]

    def sites(self, unit: Unit) -> list[SitePlan]:
        """Sites whose values the unit quantises: of its input and of its inner tensors, not of its output."""
        inside = {unit.input, *unit.nodes} - {unit.output}
        consumers = set(unit.nodes)
        first = [site for site in self.plan.sites if site.base is None and site.tensor in inside]
        further = [
            site
            for site in self.plan.sites
            if site.base is not None and any(node in consumers for node, _ in site.consumers)
        ]
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
                values[node] = self._made(node, values.__getitem__)
        return values

    def _made(self, node: fx.Node, operand: Callable[[fx.Node], Any]) -> Any:
        """Value of a node that depends on no image, on the device: what the graph makes of nothing it makes
        on the CPU.
        """
        args, kwargs = map_arg((node.args, node.kwargs), operand)
        return tree_map_only(
            Tensor, lambda value: value.to(self.device), operator_of(node)(*args, **self._here(kwargs))
        )

    def _here(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments with the executor's device where they name one."""
        return {
            name: self.device if name == "device" and value is not None else value
            for name, value in kwargs.items()
        }

    def _constant(self, node: fx.Node, sizes: Mapping[fx.Node, Any]) -> Any:
        """Value of a node that depends on no image: folded, a size, or made of both, as a class token that is
        repeated for each.
        """
        if node in self._constants:
            return self._constants[node]
        if node in sizes:
            return sizes[node]
        return self._made(node, lambda source: self._constant(source, sizes))

    def nodes_by_image(self, nodes: Iterable[fx.Node]) -> set[fx.Node]:
        """Those of some tensors whose first axis has the images one behind the other, be it in several rows
        each.

        Seen from values, since shapes do not tell rows of one image from rows of one token: three random
        images give the same together as one behind the other. Float sums depend on the batch, so tensors are
        alike where their mean squared difference is at most a hundredth of what the images themselves differ
        by.
        """
        wanted = set(nodes)
        if not self._dynamic_batch:
            return wanted
        generator = torch.Generator().manual_seed(0)
        size = (_IMAGES, *self._input_shape[1:])
        images = torch.randn(size, generator=generator) + torch.randn((*size[:2], 1, 1), generator=generator)
        alone = [_values(self.graph, wanted, image[None]) for image in images]
        together = _values(self.graph, wanted, images)
        return {node for node, value in together.items() if _is_row_of(value, [one[node] for one in alone])}

    def _sizes_for(self, images: int) -> Mapping[fx.Node, Any]:
        """Values of the nodes that are no tensors (sizes of the batch axis), for a number of images."""
        if not self._has_sizes:
            return {}
        if images not in self._sizes:
            recorder = _SizeRecorder(self.graph)
            with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
                recorder.run(torch.empty((images, *self._input_shape[1:])))
            self._sizes[images] = recorder.sizes
        return self._sizes[images]


def _is_size(node: fx.Node) -> bool:
    is_tensor = (
        bool(node.meta.get("shape")) or node.meta.get("is_tuple", False) or node.meta.get("is_float", False)
    )
    return node.op == "call_function" and not is_tensor


def _differentiable(operator: Callable[..., Any]) -> Callable[..., Any]:
    """The operator itself, or one with the same values and a derivative: a slice assignment leaves a copy
    without one.
    """
    return _copied if operator is aten.copy.default else operator


def _copied(like: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    return source.to(like.dtype).expand_as(like)


def _values(graph: fx.GraphModule, wanted: set[fx.Node], images: Tensor) -> dict[fx.Node, Tensor]:
    """Values of some nodes of the float graph, on the CPU."""
    keeper = _Keeper(graph, wanted)
    with torch.no_grad():
        keeper.run(images)
    return keeper.kept


def _is_row_of(together: Tensor, alone: Sequence[Tensor]) -> bool:
    """True where a tensor of several images is those of single images one behind the other."""
    if (
        together.dim() == 0
        or any(one.shape != alone[0].shape for one in alone)
        or together.shape[1:] != alone[0].shape[1:]
    ):
        return False
    if len(together) != len(alone) * len(alone[0]):
        return False
    single = torch.nan_to_num(torch.stack(list(alone)).double())
    wrong = (torch.nan_to_num(together.double()).reshape(single.shape) - single).square().mean()
    return bool(wrong <= _ALIKE * (single - single.mean(0)).square().mean())


class _Keeper(fx.Interpreter):
    """Runs the graph and keeps the values of some nodes."""

    def __init__(self, graph: fx.GraphModule, wanted: set[fx.Node]) -> None:
        super().__init__(graph)
        self.wanted = wanted
        self.kept: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.wanted:
            self.kept[n] = value
        return value


class _SizeRecorder(fx.Interpreter):
    """Runs the graph on fake tensors: no arithmetic but that of sizes.

    Attributes:
        sizes: values of the nodes that are no tensors.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.sizes: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if not isinstance(value, Tensor) and _is_size(n):
            self.sizes[n] = value
        return value
