"""What a layer reads, in numbers: mean and covariance of the inputs of an output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from mixport.model.programs.fx_graph import arguments, aten, shape_of
from mixport.quantize.learn.loop.activation_store import slices
from mixport.quantize.learn.reconstruction.optimise import UnitData
from mixport.quantize.learn.units.execute import Executor, Quantised
from mixport.quantize.learn.units.units import Unit

_PLACES = 16
"""Outputs looked at for each input of one, at least, where the images have so many."""
_FEWEST_PLACES, _FEWEST_IMAGES = 1 << 14, 64


@dataclass(frozen=True, kw_only=True)
class InputMoments:
    """Of the n inputs that each output of a group is a weighted sum of, in the order of its weights.

    Attributes:
        mean: float64 [G, n], in the quantised unit.
        float_mean: float64 [G, n], in the float one.
        covariance: float64 [G, n, n], in the quantised unit.
    """

    mean: Tensor
    float_mean: Tensor
    covariance: Tensor


def layer_moments(
    executor: Executor, unit: Unit, data: UnitData, layer: fx.Node, quantised: Quantised, *, batch: int
) -> InputMoments:
    """Over as many images, and as many places of each, as the covariance needs.

    Args:
        executor: of the graph.
        unit: that the layer belongs to.
        data: its inputs.
        layer: convolution or linear layer.
        quantised: the unit's quantisers and integers.
        batch: images at once.
    """
    nodes = unit.nodes[: unit.nodes.index(layer) + 1]
    front = replace(unit, nodes=nodes, output=layer, layers=tuple(one for one in unit.layers if one in nodes))
    generator = torch.Generator().manual_seed(0)
    sums: list[Tensor] = []
    places = 0
    for part in slices(len(data.target), batch):
        images = part.stop - part.start
        read: tuple[list[Tensor], list[Tensor]] = ([], [])
        with torch.no_grad():
            for kept, source, state in zip(
                read, (data.quantised_input, data.float_input), (quantised, None), strict=True
            ):
                executor.run(
                    front, source.at(part), images=images, quantised=state, watch={layer: kept.append}
                )
        wanted = 0
        for both in zip(*(torch.cat(kept).chunk(images) for kept in read), strict=True):
            rows, float_rows = (inputs_of(layer, values) for values in both)
            wanted = max(_FEWEST_PLACES, _PLACES * rows.shape[2])
            if rows.shape[1] > wanted // _FEWEST_IMAGES:
                some = torch.randperm(rows.shape[1], generator=generator)[: wanted // _FEWEST_IMAGES].to(
                    rows.device
                )
                rows, float_rows = rows[:, some], float_rows[:, some]
            wide = rows.double()
            found = [wide.sum(1), float_rows.double().sum(1), wide.transpose(1, 2) @ wide]
            sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
            places += rows.shape[1]
        if part.stop >= _FEWEST_IMAGES and places >= wanted:
            break
    mean, float_mean, square = (value / places for value in sums)
    return InputMoments(
        mean=mean, float_mean=float_mean, covariance=square - mean[..., None] * mean[:, None, :]
    )


def inputs_of(layer: fx.Node, x: Tensor) -> Tensor:
    """What each output of a convolution or linear layer is a weighted sum of: [G, places, n], in the order of
    a group's weights.
    """
    if layer.target is aten.linear.default:
        return x.reshape(1, -1, x.shape[-1])
    dims = 1 if layer.target is aten.conv1d.default else 2
    ones = [1] * dims
    _, weight, _, stride, padding, dilation, groups = arguments(
        layer, None, ones, [0] * dims, ones, 1, after=2
    )
    if dims == 1:
        x = x[:, :, None]
    columns = torch.nn.functional.unfold(
        x,
        _pair(shape_of(weight)[2:], 1),
        dilation=_pair(dilation, 1),
        padding=_pair(padding, 0),
        stride=_pair(stride, 1),
    )
    return (
        columns.reshape(len(x), groups, -1, columns.shape[-1])
        .permute(1, 0, 3, 2)
        .reshape(groups, -1, columns.shape[1] // groups)
    )


def _pair(values: Sequence[int], first: int) -> tuple[int, int]:
    """Of two dimensions; `first` is put in front where there is one."""
    last = [int(value) for value in values]
    return (first, last[0]) if len(last) == 1 else (last[0], last[1])
