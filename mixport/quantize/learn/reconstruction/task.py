"""What is to be reconstructed: everything that was chosen before, and that later units start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from mixport.arithmetic.quant_params import QuantParams
from mixport.arithmetic.scale_grid import ANY_SCALE, ScaleGrid
from mixport.quantize.integers.nearest import LayerIntegers
from mixport.quantize.sites.planner import QuantizationPlan
from mixport.quantize.sites.widths import LayerWidths


@dataclass(frozen=True, kw_only=True)
class Task:
    """A float graph with its plan, calibrated and rounded to nearest.

    Attributes:
        graph: captured float graph.
        plan: of this graph.
        widths: of its layers.
        params: calibrated, by site.
        integers: rounded to nearest, by layer.
        input_shape: [1, 3, H, W].
        dynamic_batch: True where the graph holds for every batch.
        grid: of the target's scales: where it is coarse, steps and scales keep their calibrated values.
    """

    graph: fx.GraphModule
    plan: QuantizationPlan
    widths: LayerWidths
    params: Mapping[str, QuantParams]
    integers: Mapping[fx.Node, LayerIntegers]
    input_shape: tuple[int, int, int, int]
    dynamic_batch: bool
    grid: ScaleGrid = ANY_SCALE
