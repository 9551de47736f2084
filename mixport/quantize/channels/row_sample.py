"""Places of tensors, drawn over all calibration images: what choices that look at single values are made
on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to keep of one tensor.

    Attributes:
        rows: how many places over all images, rounded up for each batch.
        axis: of its channels.
    """

    rows: int
    axis: int


class _Sampler(fx.Interpreter):
    """Keeps rows of some nodes: a seeded draw, since even distances could meet the same places of every
    image.
    """

    def __init__(self, graph: fx.GraphModule, wanted: Mapping[fx.Node, Wanted]) -> None:
        super().__init__(graph)
        self.wanted, self.share = wanted, 1.0
        self.generator = torch.Generator().manual_seed(0)
        self.rows: dict[fx.Node, list[Tensor]] = {node: [] for node in wanted}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.rows:
            asked = self.wanted[n]
            rows = value.movedim(asked.axis, -1).reshape(-1, value.shape[asked.axis])
            count = math.ceil(asked.rows * self.share)
            self.rows[n].append(rows[torch.randperm(len(rows), generator=self.generator)[:count]])
        return value


def sample_rows(
    graph: fx.GraphModule, wanted: Mapping[fx.Node, Wanted], batches: Iterable[Tensor], *, images: int
) -> dict[fx.Node, Tensor]:
    """Rows of each tensor, float32 [rows, C].

    Args:
        graph: with recorded shapes.
        wanted: by tensor.
        batches: images, float32 [N, 3, H, W].
        images: how many there are.
    """
    sampler = _Sampler(graph, wanted)
    with torch.no_grad():
        for batch in batches:
            sampler.share = len(batch) / images
            sampler.run(batch)
    return {node: torch.cat(rows) for node, rows in sampler.rows.items()}
