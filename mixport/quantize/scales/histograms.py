"""Streaming statistics of activations: one histogram a tensor, fixed memory, one pass over the images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from mixport.records.errors import BadInputError

BINS = 16384
"""Bins over [-limit, limit]: at least 16 per 8-bit step even when the data fill only a quarter of the
span.
"""


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Values seen on one tensor.

    Attributes:
        counts: float64 [BINS], symmetric about zero.
        limit: half width of the span, a power of two.
        low: smallest value seen.
        high: largest value seen.
    """

    counts: NDArray[np.float64]
    limit: float
    low: float
    high: float

    @property
    def centres(self) -> NDArray[np.float64]:
        """Middle of each bin."""
        edges = np.linspace(-self.limit, self.limit, len(self.counts) + 1)
        return (edges[1:] + edges[:-1]) / 2

    @cached_property
    def fine(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(values, counts) of the occupied bins, merged to at most 2048 points."""
        return self._occupied(resolution=2048)

    @cached_property
    def coarse(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(values, counts) of the occupied bins, merged to at most 512 points."""
        return self._occupied(resolution=512)

    def _occupied(self, *, resolution: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        centres = self.centres
        used = self.counts > 0
        values, counts = centres[used], self.counts[used]
        if len(values) <= resolution:
            return np.clip(values, self.low, self.high), counts
        index = np.minimum(
            ((values - values[0]) / (values[-1] - values[0]) * resolution).astype(np.int64), resolution - 1
        )
        weight = np.asarray(np.bincount(index, counts, resolution), np.float64)
        total = np.asarray(np.bincount(index, counts * values, resolution), np.float64)
        keep = weight > 0
        return total[keep] / weight[keep], weight[keep]


class HistogramObserver:
    """Builds a Histogram from batches.

    When a value falls outside, the span doubles and neighbouring bins merge: exact counts, no second pass.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.limit, self.zeros = 0.0, 0
        self.low, self.high = float("inf"), float("-inf")

    def update(self, values: Tensor) -> None:
        """Count float32 values of any shape. Raises BadInputError on NaN or infinity."""
        low, high = (float(v) for v in torch.aminmax(values))
        if not (np.isfinite(low) and np.isfinite(high)):
            raise BadInputError(
                f"activation {self.name} holds NaN or infinity on the calibration images",
                hint="check the weights and the preprocessing",
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._grow(max(abs(low), abs(high)))
        if self.limit == 0.0:
            self.zeros += values.numel()  # no span yet: only zeros so far
        else:
            self.counts += torch.histc(values.float().flatten(), BINS, -self.limit, self.limit).double()

    def result(self) -> Histogram:
        """What was seen so far."""
        return Histogram(
            counts=self.counts.numpy().copy(), limit=self.limit or 1.0, low=self.low, high=self.high
        )

    def _grow(self, magnitude: float) -> None:
        if magnitude == 0.0 or magnitude <= self.limit:
            return
        wanted = float(2.0 ** np.ceil(np.log2(magnitude)))
        while wanted < magnitude:
            wanted *= 2.0
        if self.limit == 0.0:
            self.limit = wanted
            self.counts[BINS // 2] += self.zeros
        while self.limit < wanted:
            merged = self.counts.view(-1, 2).sum(1)
            self.counts.zero_()
            quarter = BINS // 4
            self.counts[quarter : quarter + BINS // 2] = merged
            self.limit *= 2.0


def histogram_of(values: Tensor) -> Histogram:
    """Of one float32 tensor of any shape. Raises BadInputError on NaN or infinity."""
    observer = HistogramObserver("values")
    observer.update(values)
    return observer.result()


class _Collector(fx.Interpreter):
    def __init__(
        self,
        graph: fx.GraphModule,
        observers: dict[fx.Node, HistogramObserver],
        limits: Mapping[fx.Node, float],
        reaches: Mapping[fx.Node, float],
    ) -> None:
        super().__init__(graph)
        self.observers, self.limits, self.reaches = observers, limits, reaches

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        observer = self.observers.get(n)
        if observer is not None:
            seen = value.clamp_max(self.limits[n]) if n in self.limits else value
            observer.update(within_reach(seen, self.reaches[n]) if n in self.reaches else seen)
        return value


def within_reach(x: Tensor, reach: float) -> Tensor:
    """x with what lies further than `reach` below the largest of its row (last axis) lifted to there; rows of
    -inf count as 0.
    """
    largest = x.amax(-1, keepdim=True)
    return torch.where(largest == float("-inf"), torch.zeros_like(x), torch.maximum(x, largest - reach))


_NONE: Mapping[fx.Node, float] = MappingProxyType({})


def collect(
    graph: fx.GraphModule,
    nodes: dict[fx.Node, str],
    batches: Iterable[Tensor],
    *,
    limits: Mapping[fx.Node, float] = _NONE,
    reaches: Mapping[fx.Node, float] = _NONE,
) -> Iterator[tuple[int, dict[fx.Node, HistogramObserver]]]:
    """Run the float graph over `batches` and observe `nodes` (node -> name); values above a node's limit
    count as the limit, and values further below the largest of their row than a node's reach count as if they
    lay there.

    Yields (images done, observers) after each batch; memory is one batch's activations plus one histogram a
    tensor.
    """
    observers = {node: HistogramObserver(name) for node, name in nodes.items()}
    collector = _Collector(graph, observers, limits, reaches)
    done = 0
    for batch in batches:
        with torch.no_grad():
            collector.run(batch)
        done += len(batch)
        yield done, observers
