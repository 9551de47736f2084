"""What channels are and what the outputs make of them, in one pass over images: means, covariances, Fisher
information, some places.
"""

# torch leaves some signatures of tensors without types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from mixport.model.programs.fx_graph import operator_of, shape_of
from mixport.quantize.gradients import gradients

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Of one tensor [N, C, H, W] over all images and places.

    Attributes:
        mean: float64 [C].
        square: mean of x x^T, float64 [C, C].
        fisher: mean of g g^T, float64 [C, C], g the gradient of the log-likelihood of a class drawn from the
            model's own outputs, with respect to what the named readers see; zeros where there are none.
        rows: some places, float32 [rows, C].
    """

    mean: Array
    square: Array
    fisher: Array
    rows: Tensor

    @property
    def finite(self) -> bool:
        """False where values or gradients are NaN or infinite."""
        return bool(np.isfinite(self.square).all() and np.isfinite(self.fisher).all())


def channel_moments(
    graph: fx.GraphModule,
    readers: Mapping[fx.Node, tuple[fx.Node, ...]],
    batches: Iterable[Tensor],
    *,
    images: int,
    rows: int,
) -> dict[fx.Node, Moments]:
    """Moments of tensors.

    Args:
        graph: canonical float graph with recorded shapes.
        readers: by tensor, those that read it as codes: its gradient is what flows back through them alone.
        batches: images, float32 [N, 3, H, W].
        images: how many there are.
        rows: places to keep of each tensor, rounded up for each batch.

    Raises:
        NotLearnedError: an operator on the way to the outputs has no derivative, or no output depends on the
            tensors.
    """
    sums = {node: _Sums.of(shape_of(node)[1]) for node in readers}
    draws = torch.Generator().manual_seed(0)
    for batch in batches:
        run = _Run(graph, readers)
        with torch.enable_grad():
            likelihood = _likelihood(run.run(batch.clone().requires_grad_()), draws)
        seen = {node: copy for node, copy in run.copies.items() if readers[node]}
        found = gradients(likelihood, list(seen.values())) if seen else ()
        back = dict(zip(seen, found, strict=True))
        for node, copy in run.copies.items():
            count = math.ceil(rows * len(batch) / images)
            sums[node].add(_places(copy.detach()), back.get(node), keep=count, draws=draws)
    return {node: one.result() for node, one in sums.items()}


class _Run(fx.Interpreter):
    """Runs the graph with gradients; readers see a copy of their tensor, to which no other gradient comes.

    Attributes:
        copies: by tensor.
    """

    def __init__(self, graph: fx.GraphModule, readers: Mapping[fx.Node, tuple[fx.Node, ...]]) -> None:
        super().__init__(graph)
        self.copies: dict[fx.Node, Tensor] = {}
        self._readers = readers
        self._reads = {layer: node for node, layers in readers.items() for layer in layers}

    def run_node(self, n: fx.Node) -> Any:
        if n in self._reads:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            value = operator_of(n)(self.copies[self._reads[n]], *args[1:], **kwargs)
        else:
            value = super().run_node(n)
        if n in self._readers:
            self.copies[n] = value.view_as(value)
        return value


@dataclass(kw_only=True)
class _Sums:
    """Moments that grow."""

    total: Tensor
    square: Tensor
    fisher: Tensor
    rows: list[Tensor]
    places: int = 0

    @classmethod
    def of(cls, channels: int) -> _Sums:
        square = torch.zeros(channels, channels, dtype=torch.float64)
        return cls(total=square[0].clone(), square=square, fisher=square.clone(), rows=[])

    def add(self, values: Tensor, gradient: Tensor | None, *, keep: int, draws: torch.Generator) -> None:
        """Places of one batch, [places, C], and the gradient in the tensor's own shape."""
        self.places += len(values)
        self.rows.append(values[torch.randperm(len(values), generator=draws)[:keep]])
        wide = values.double()
        self.total += wide.sum(0)
        self.square += wide.T @ wide
        if gradient is not None:
            back = _places(gradient).double()
            self.fisher += back.T @ back

    def result(self) -> Moments:
        parts = (self.total, self.square, self.fisher)
        mean, square, fisher = (part.numpy() / max(self.places, 1) for part in parts)
        return Moments(mean=mean, square=square, fisher=fisher, rows=torch.cat(self.rows))


def _places(values: Tensor) -> Tensor:
    return values.movedim(1, -1).reshape(-1, values.shape[1])


def _likelihood(outputs: Tensor, draws: torch.Generator) -> Tensor:
    """Log-likelihood of classes drawn from the outputs' softmax along axis 1, scalar; of one output, a drawn
    sign times it.
    """
    classes = outputs.shape[1] if outputs.dim() > 1 else 1
    flat = outputs.reshape(len(outputs), classes, -1).movedim(1, -1).reshape(-1, classes)
    if classes == 1:
        signs = torch.randint(0, 2, flat.shape, generator=draws) * 2 - 1
        return (flat * signs).sum()
    logs = torch.log_softmax(flat, 1)
    shares = logs.detach().exp()
    # An output that is no number draws any class: its gradient is no number either, which the moments say.
    drawn = torch.multinomial(
        torch.where(shares.isfinite().all(1, keepdim=True), shares, 1 / classes), 1, generator=draws
    )
    return logs.gather(1, drawn).sum()
