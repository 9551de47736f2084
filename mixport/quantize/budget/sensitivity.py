"""What rounding one layer's weights does to the model's output, measured: the float graph is run once, and
once more behind each change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from mixport.arithmetic.scale_grid import ANY_SCALE, ScaleGrid
from mixport.model.programs.fx_graph import constant, operator_of
from mixport.quantize.scales.ranges import weight_scales
from mixport.records.errors import InvariantError
from mixport.records.progress import Progress

RoundWeight = Callable[[fx.Node, NDArray[np.float32], int], NDArray[np.float32]]
"""(layer, float32 weight [O, ...], bits) -> the weight that its integers would stand for, of the same
shape.
"""


def round_to_nearest(
    layer: fx.Node, weight: NDArray[np.float32], bits: int, *, grid: ScaleGrid = ANY_SCALE
) -> NDArray[np.float32]:
    """Round to nearest with the scales that the quantiser would start from."""
    scales, codes = weight_scales(weight, bits=bits, grid=grid)
    return codes.astype(np.float32) * scales.reshape(-1, *[1] * (weight.ndim - 1))


class RoundedWeights:
    """Rounded weights of layers, each computed once.

    Args:
        graph: that holds the layers and their weights.
        rounding: how a weight is rounded.
    """

    def __init__(self, graph: fx.GraphModule, rounding: RoundWeight) -> None:
        self._graph, self._rounding = graph, rounding
        self._known: dict[tuple[fx.Node, int], Tensor] = {}

    def of(self, layer: fx.Node, bits: int) -> Tensor:
        """The weight of a layer at a width, float32."""
        key = (layer, bits)
        if key not in self._known:
            weight = constant(self._graph, layer.args[1])
            if weight is None:
                raise InvariantError(f"weight of layer {layer.name} is not constant")
            self._known[key] = torch.as_tensor(self._rounding(layer, weight.numpy(), bits))
        return self._known[key]


def layer_losses(
    graph: fx.GraphModule,
    changes: Mapping[fx.Node, Sequence[Tensor]],
    batches: Iterator[Tensor],
    *,
    images: int,
    progress: Progress,
) -> dict[fx.Node, tuple[float, ...]]:
    """Loss with one layer's weight replaced, for each layer and each of its replacements.

    Args:
        graph: captured float graph.
        changes: layer -> weights to put in its place, one at a time.
        batches: float32 [N, C, H, W].
        images: sum of N, for the bar.
        progress: bars.

    Returns:
        layer -> mean over images of the divergence of `divergence`, in the order of its replacements;
        infinite where one is.
    """
    totals = {layer: np.zeros(len(weights)) for layer, weights in changes.items()}
    count = 0
    with progress.track("sensitivity", total=images) as advance, torch.no_grad():
        for batch in batches:
            run = _Forking(graph, changes)
            reference = run.run(batch)
            for layer, outputs in run.outputs.items():
                totals[layer] += [divergence(reference, output) for output in outputs]
            count += len(batch)
            advance(len(batch))
    return {layer: tuple(float(value) for value in total / max(count, 1)) for layer, total in totals.items()}


def joint_losses(
    graph: fx.GraphModule, choices: Sequence[Mapping[fx.Node, Tensor]], batches: Iterator[Tensor]
) -> tuple[float, ...]:
    """Loss with the weights of many layers replaced at once, for each of several choices; arguments as in
    `layer_losses`.
    """
    totals, count = np.zeros(len(choices)), 0
    runs = [_Replaced(graph, choice) for choice in choices]
    reference = fx.Interpreter(graph)
    with torch.no_grad():
        for batch in batches:
            expected = reference.run(batch)
            totals += [divergence(expected, run.run(batch)) for run in runs]
            count += len(batch)
    return tuple(float(value) for value in totals / max(count, 1))


def divergence(reference: Tensor, got: Tensor) -> float:
    """Sum over images of KL(softmax(reference) || softmax(got)) in nats, classes along axis 1; float32 [N, C,
    ...].

    A model with one output has no classes: there it is the squared error relative to the reference's mean
    square. Infinite where `got` is not finite.
    """
    a, b = (
        value.double().reshape(len(value), value.shape[1] if value.dim() > 1 else 1, -1)
        for value in (reference, got)
    )
    if a.shape[1] == 1:
        value = len(a) * float((a - b).square().mean() / (a.square().mean() + 1e-12))
    else:
        p, q = a.log_softmax(1), b.log_softmax(1)
        value = float((p.exp() * (p - q)).sum(1).mean(1).sum())
    return max(value, 0.0) if np.isfinite(value) else np.inf


class _Replaced(fx.Interpreter):
    """Runs the graph with other weights in some layers."""

    def __init__(self, graph: fx.GraphModule, weights: Mapping[fx.Node, Tensor]) -> None:
        super().__init__(graph)
        self.weights = weights

    def run_node(self, n: fx.Node) -> Any:
        weight = self.weights.get(n)
        if weight is None:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        return operator_of(n)(args[0], weight, *args[2:], **kwargs)


class _Forking(fx.Interpreter):
    """Runs the float graph; at each layer it also runs what follows with other weights, from the values at
    hand.

    Attributes:
        outputs: layer -> outputs with each of its replacements.
    """

    def __init__(self, graph: fx.GraphModule, changes: Mapping[fx.Node, Sequence[Tensor]]) -> None:
        super().__init__(graph)
        self.changes = changes
        self.outputs: dict[fx.Node, list[Tensor]] = {}
        self._before: dict[fx.Node, Any] = {}
        self._codegen = graph.graph

    def run_node(self, n: fx.Node) -> Any:
        if n in self.changes:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            self.outputs[n] = [
                self._behind(n, operator_of(n)(args[0], weight, *args[2:], **kwargs))
                for weight in self.changes[n]
            ]
        self._before[n] = None
        return super().run_node(n)

    def _behind(self, n: fx.Node, value: Any) -> Tensor:
        # Nodes that have a value are not run again: those before the layer have one, if only a stand-in where
        # nobody reads it.
        branch = fx.Interpreter(self.module)
        output = branch.run(initial_env={**self._before, **self.env, n: value}, enable_io_processing=False)
        result: Tensor = self._codegen.process_outputs(output)
        return result
