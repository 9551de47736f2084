"""Where learning starts: each layer of a unit with codes of least squared error of what it gives, and a bias
that holds the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from mixport.arithmetic.scale_grid import ANY_SCALE, ScaleGrid
from mixport.quantize.integers.coordinate_descent import least_squares_codes
from mixport.quantize.integers.nearest import LayerIntegers, least_scales
from mixport.quantize.learn.reconstruction.layer_moments import InputMoments, layer_moments
from mixport.quantize.learn.reconstruction.optimise import UnitData
from mixport.quantize.learn.units.execute import Executor, Quantised
from mixport.quantize.learn.units.units import Unit


@dataclass(frozen=True, kw_only=True)
class FloatLayer:
    """A layer whose codes are chosen.

    Attributes:
        node: convolution or linear layer.
        weight: float32 [O, ...].
        bits: of its codes.
        x_scale: of the codes that it reads.
    """

    node: fx.Node
    weight: Tensor
    bits: int
    x_scale: float


@dataclass(frozen=True, kw_only=True)
class Start:
    """A layer as learning starts from it.

    Attributes:
        integers: of least squared error.
        mean: float32 [G, n], of the inputs of an output.
    """

    integers: LayerIntegers
    mean: Tensor


def least_squares_start(
    executor: Executor,
    unit: Unit,
    data: UnitData,
    layers: Sequence[FloatLayer],
    integers: Mapping[fx.Node, LayerIntegers],
    *,
    state: Callable[[Mapping[fx.Node, LayerIntegers]], Quantised],
    batch: int,
    grid: ScaleGrid = ANY_SCALE,
) -> dict[fx.Node, Start]:
    """Integers of some layers of a unit, one after another in graph order, each behind those before it.

    Args:
        executor: of the graph.
        unit: which.
        data: its inputs.
        layers: in graph order.
        integers: of all layers of the unit, rounded to nearest.
        state: the unit's quantisers, with these integers.
        batch: images at once.
        grid: of the target's scales: a coarse one leaves those of rounding to nearest.
    """
    chosen = {layer: integers[layer] for layer in unit.layers}
    found: dict[fx.Node, Start] = {}
    for layer in layers:
        seen = layer_moments(executor, unit, data, layer.node, state(chosen), batch=batch)
        if not bool(torch.isfinite(seen.covariance).all()):
            continue
        chosen[layer.node] = choose(layer, chosen[layer.node], seen, grid=grid)
        found[layer.node] = Start(integers=chosen[layer.node], mean=seen.mean.float())
    return found


def choose(
    layer: FloatLayer, nearest: LayerIntegers, seen: InputMoments, *, grid: ScaleGrid = ANY_SCALE
) -> LayerIntegers:
    """Codes, scales and bias of one layer.

    The bias takes up what the quantised layer's mean output lacks (arXiv 1906.04721, section 4.2). A layer
    without one must keep the mean by its codes: its error counts the mean of the inputs too.
    """
    groups, inputs = seen.mean.shape
    weight = layer.weight.to(seen.mean.device).double().reshape(groups, -1, inputs)
    matrix = seen.covariance
    if nearest.bias is None:
        matrix = matrix + seen.mean[..., None] * seen.mean[:, None, :]

    def by_group(values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, device=seen.mean.device).double().reshape(groups, -1)

    least = least_scales(nearest.bias, len(nearest.scales), x_scale=layer.x_scale)
    codes, scales = least_squares_codes(
        weight,
        matrix,
        by_group(nearest.scales),
        bits=layer.bits,
        least=by_group(least),
        fits_scales=grid.moves_freely,
    )
    kept = scales.float()
    bias = None
    if nearest.bias is not None:
        quantised = codes * kept.double()[..., None]
        moved = by_group(nearest.bias) + (
            weight @ seen.float_mean[..., None] - quantised @ seen.mean[..., None]
        ).squeeze(-1)
        bias = moved.flatten().cpu().numpy().astype(np.float32)
    return LayerIntegers(
        scales=kept.flatten().cpu().numpy(),
        codes=codes.reshape(layer.weight.shape).cpu().numpy().astype(np.int8),
        bias=bias,
    )
