"""The mean of what each layer reads: biases follow weights by it while these move.

Behind a Relu every input is positive, so that each step of a weight moves an output by far more than it
changes its shape, and the bias is late; a narrow code's step is large. Trained networks have BatchNorm
against that, which is folded here. With w x + b written as w (x - m) + b', m fixed, the mean of an output
stays where its weights move (mixport.quantize.learn.reconstruction.rounding does the same). At 2 bits this
took a sixth off the loss of ResNet-20 within a hundred steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, fx

from mixport.quantize.learn.reconstruction.layer_moments import inputs_of
from mixport.train.network.layers import TrainedLayers
from mixport.train.network.whole import WholeGraph

_IMAGES = 256
"""Enough for a mean."""


def set_centres(
    layers: TrainedLayers,
    graph: WholeGraph,
    batches: Iterable[Tensor],
    *,
    effective: Callable[[int], Tensor],
) -> None:
    """Measure the means in the float graph, and express biases by them.

    Args:
        layers: get their centres; their biases move so that outputs stay.
        graph: they are layers of.
        batches: images float32 [B, C, H, W], preprocessed; the first 256 are taken.
        effective: weight of a layer as the network uses it now, float32 [O, ...].
    """
    sums: dict[fx.Node, tuple[Tensor, int]] = {}

    def watching(node: fx.Node) -> Callable[[Tensor], None]:
        def see(x: Tensor) -> None:
            rows = inputs_of(node, x.detach())
            total, places = sums.get(node, (rows.new_zeros((), dtype=torch.float64), 0))
            sums[node] = (total + rows.sum(1, dtype=torch.float64), places + rows.shape[1])

        return see

    watch = {node: watching(node) for node in layers.nodes}
    seen = 0
    with torch.no_grad():
        for x in batches:
            graph.run(x, quantised=None, watch=watch)
            seen += len(x)
            if seen >= _IMAGES:
                break
        for number, node in enumerate(layers.nodes):
            if layers.bias_of(number) is None or node not in sums:
                continue
            total, places = sums[node]
            weight = layers.weight[number]
            mean = (total / places).float()
            outputs = len(weight) // len(mean)
            layers.centre[number].copy_(mean.repeat_interleave(outputs, 0).view_as(weight))
            layers.bias[number].add_((effective(number) * layers.centre[number]).flatten(1).sum(1))
