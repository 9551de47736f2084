"""A prepared graph run as a whole, image batch in and outputs out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, fx

from mixport.quantize.learn.units.execute import Executor, Quantised
from mixport.quantize.learn.units.units import find_units, merge_units
from mixport.quantize.prepared import Prepared


class WholeGraph:
    """Runs all units of a graph as one.

    Args:
        prepared: graph and plan.
        device: where it runs.
    """

    def __init__(self, prepared: Prepared, *, device: torch.device) -> None:
        self._executor = Executor(
            prepared.graph,
            prepared.plan,
            input_shape=prepared.model.input_shape,
            dynamic_batch=prepared.captured.dynamic_batch,
            device=device,
        )
        self._unit = merge_units(find_units(prepared.graph, prepared.plan))

    def run(
        self,
        x: Tensor,
        *,
        quantised: Quantised | None,
        watch: Mapping[fx.Node, Callable[[Tensor], None]] = MappingProxyType({}),
    ) -> Tensor:
        """Outputs for preprocessed images float32 [N, C, H, W], before a quantiser of their own; see
        `Executor.run`.
        """
        return self._executor.run(self._unit, x, images=len(x), quantised=quantised, watch=watch)
