"""How far the blocks of a quantised network are from those of the float model: hints for training.

Images that a model was trained on it knows by heart: its outputs there are nearly one-hot and say little, and
a network that is trained on them forgets what it does elsewhere. What its blocks hand on says more (FitNets,
arXiv 1412.6550, equation 3; there of one block, here of all, relative to their size).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, fx

from mixport.quantize.learn.units.units import find_units
from mixport.quantize.prepared import Prepared
from mixport.train.network.whole import WholeGraph

Watch = Mapping[fx.Node, Callable[[Tensor], None]]
"""Layers, and what is told the tensor that each reads; see `Executor.run`."""


class BlockDistance:
    """Distance of what each block reads, the first one apart, from what it reads in the float model.

    Args:
        prepared: graph with the float model's weights, which no training changes.
        weight: of the distance in the loss.
        device: where it runs.
    """

    def __init__(self, prepared: Prepared, *, weight: float, device: torch.device) -> None:
        self._graph, self._weight = WholeGraph(prepared, device=device), weight
        units = find_units(prepared.graph, prepared.plan)[1:]
        self._float = {prepared.widths[unit.layers[0]].name: unit.layers[0] for unit in units if unit.layers}

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that read what is compared."""
        return tuple(self._float)

    def run(
        self, x: Tensor, *, prepared: Prepared, student: Callable[[Watch], Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """Outputs of the student, and the mean over blocks of squared distance over squared size; None where
        there is but one block.

        Args:
            x: images float32 [N, C, H, W], preprocessed.
            prepared: graph of the student: the same layers by name.
            student: runs it on these images.
        """
        wanted, found = _Seen(), _Seen()
        with torch.no_grad():
            self._graph.run(
                x, quantised=None, watch={node: wanted.of(name) for name, node in self._float.items()}
            )
        watch = {
            node: found.of(width.name) for node, width in prepared.widths.items() if width.name in self._float
        }
        outputs = student(watch)
        if not watch:
            return outputs, None
        parts = [_relative(found.value(name), wanted.value(name)) for name in self._float]
        return outputs, self._weight * torch.stack(parts).mean()


class _Seen:
    """Tensors by the layer that reads them; image by image where a graph's batch is fixed."""

    def __init__(self) -> None:
        self._parts: dict[str, list[Tensor]] = {}

    def of(self, name: str) -> Callable[[Tensor], None]:
        return self._parts.setdefault(name, []).append

    def value(self, name: str) -> Tensor:
        return torch.cat(self._parts[name])


def _relative(found: Tensor, wanted: Tensor) -> Tensor:
    return (found - wanted).square().mean() / wanted.square().mean().clamp_min(1e-12)
