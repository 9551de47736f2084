"""Integers by rounding to nearest: what a layer ships with where nothing is learned, and what reconstruction
starts from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from torch import fx

from mixport.arithmetic.dtypes import IntType
from mixport.arithmetic.quant_params import QuantParams
from mixport.arithmetic.scale_grid import ANY_SCALE, ScaleGrid
from mixport.model.programs.fx_graph import constant, groups_of, tensor_arg, tensor_list_arg
from mixport.quantize.graph.roles import Kind
from mixport.quantize.integers.settle import keep_pair_bound
from mixport.quantize.scales.ranges import weight_scales
from mixport.quantize.sites.planner import QuantizationPlan, SitePlan
from mixport.quantize.sites.widths import LayerWidth, LayerWidths
from mixport.records.decision import Decision
from mixport.records.errors import BadOptionError, InvariantError

_BIAS_LIMIT = 2.0**29
"""Bias codes stay below this, so that bias plus the largest weight sum fits int32."""
_DEAD_BIAS_CODE = 2.0**20
"""Bias code of a channel without weights: its error is a millionth of the bias."""

Float = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class LayerIntegers:
    """Weights of one layer, fixed but for what exact requantisation asks of the scales.

    Attributes:
        scales: float32 [O], positive.
        codes: int8, shape of the weight.
        bias: float32 [O], None without one; rounded once, when scales are final.
    """

    scales: Float
    codes: NDArray[np.int8]
    bias: Float | None


def nearest_integers(
    graph: fx.GraphModule,
    plan: QuantizationPlan,
    widths: LayerWidths,
    params: Mapping[str, QuantParams],
    *,
    pair_limit: int | None,
    grid: ScaleGrid = ANY_SCALE,
    given: Mapping[str, tuple[float, ...]] = MappingProxyType({}),
) -> tuple[dict[fx.Node, LayerIntegers], list[Decision]]:
    """Every layer rounded to nearest, at scales of least L_p error, with room for its bias and within the
    pair bound.

    Args:
        graph: captured float graph.
        plan: of this graph.
        widths: of the layers.
        params: of every site.
        pair_limit: of the target's accumulator.
        grid: of the target's scales.
        given: scales by layer, which are taken in the place of those of least error.

    Raises:
        BadOptionError: given scales of another number than output channels, or off the grid.
    """
    found: dict[fx.Node, LayerIntegers] = {}
    decisions: list[Decision] = []
    for node, width in widths.items():
        weight, bias = float_weights(graph, node)
        x = read_params(plan, node, params)
        if width.name in given:
            scales, codes = _at_scales(width, weight, given[width.name], grid=grid)
        else:
            scales, codes = weight_scales(weight, bits=width.bits, grid=grid)
        scales, codes, raised = room_for_bias(weight, bias, scales, codes, x_scale=x.scale, grid=grid)
        if raised:
            why = "their bias would not fit int32"
            decisions.append(
                Decision(where=width.name, what=f"weight scale of {raised} channels raised", why=why)
            )
        if pair_limit is not None:
            scales, codes, changed = keep_pair_bound(
                width.name,
                weight,
                scales,
                codes,
                bits=width.bits,
                groups=groups_of(node),
                x=x,
                limit=pair_limit,
                grid=grid,
            )
            decisions += changed
        found[node] = LayerIntegers(scales=scales, codes=codes, bias=bias)
    return found, decisions


def _at_scales(
    width: LayerWidth, weight: Float, given: tuple[float, ...], *, grid: ScaleGrid
) -> tuple[Float, NDArray[np.int8]]:
    scales = np.array(given, np.float32)
    if scales.shape != weight.shape[:1] or not grid.holds_weights(scales):
        raise BadOptionError(
            f"width table: layer {width.name} has {len(scales)} scales, allowed {len(weight)}, as the target "
            "has them",
            hint=f"leave the scale of {width.name} out",
        )
    kind = IntType(bits=width.bits, signed=True, narrow=width.bits == 8)
    wide = scales.astype(np.float64).reshape(-1, *[1] * (weight.ndim - 1))
    codes = np.clip(np.rint(weight.astype(np.float64) / wide), kind.qmin, kind.qmax)
    return scales, codes.astype(np.int8)


def float_weights(graph: fx.GraphModule, node: fx.Node) -> tuple[Float, Float | None]:
    """Weight and bias of a layer of the float graph."""
    weight = constant(graph, node.args[1])
    bias = constant(graph, node.args[2]) if len(node.args) > 2 else None
    if weight is None:
        raise InvariantError(f"weight of layer {node.name} is not constant")
    return weight.numpy(), None if bias is None else bias.numpy()


def read_params(plan: QuantizationPlan, layer: fx.Node, params: Mapping[str, QuantParams]) -> QuantParams:
    """Parameters of the codes that a layer reads; a table may give every code of its storage type."""
    site = read_site(plan, layer)
    found = params[site.name]
    if not site.chain:
        return found
    return QuantParams(
        scale=found.scale, zero_point=found.zero_point, qmin=0, qmax=255, storage=found.storage
    )


def read_site(plan: QuantizationPlan, layer: fx.Node) -> SitePlan:
    """The site whose codes a layer reads; see `operand_site`."""
    return operand_site(plan, layer, tensor_arg(layer, 0))


def operand_site(plan: QuantizationPlan, reader: fx.Node, operand: fx.Node) -> SitePlan:
    """The site whose codes a layer or a product reads as one operand: the one made for it, else the first of
    the tensor behind the operand.
    """
    for site in plan.sites:
        if (reader, operand) in site.consumers:
            return site
    while True:
        for site in plan.sites:
            if site.tensor is operand and site.base is None:
                return site
        if plan.kinds[operand] is Kind.CONCAT:
            operand = tensor_list_arg(operand, 0)[0]
        elif plan.kinds[operand] is Kind.MOVE:
            operand = tensor_arg(operand, 0)
        else:
            raise InvariantError(f"{reader.name} reads no quantised activation")


def room_for_bias(
    weight: Float,
    bias: Float | None,
    scales: Float,
    codes: NDArray[np.int8],
    *,
    x_scale: float,
    grid: ScaleGrid = ANY_SCALE,
) -> tuple[Float, NDArray[np.int8], int]:
    """Raise scales of channels whose bias code would leave int32; all-zero channels take a scale that holds
    their bias finely.

    Returns:
        scales, codes (rounded again in the channels that were raised), and the number of those channels.
    """
    least = least_scales(bias, len(scales), x_scale=x_scale, grid=grid)
    scales = scales_of_dead(bias, scales, codes, x_scale=x_scale, grid=grid)
    dead = ~codes.reshape(len(codes), -1).any(1)
    low = (scales < least) & ~dead
    if not low.any():
        return scales, codes, 0
    raised = np.where(low, least, scales).astype(np.float32)
    shape = (-1, *[1] * (weight.ndim - 1))
    requantised = np.rint(weight.astype(np.float64) / raised.astype(np.float64).reshape(shape)).astype(
        np.int8
    )
    return raised, np.where(low.reshape(shape), requantised, codes), int(low.sum())


def least_scales(bias: Float | None, channels: int, *, x_scale: float, grid: ScaleGrid = ANY_SCALE) -> Float:
    """Smallest weight scales, float32 [O], at which the bias codes stay below 2^29."""
    magnitude = (np.abs(bias) if bias is not None else np.zeros(channels, np.float32)).astype(np.float64)
    least = np.maximum(magnitude / (float(x_scale) * _BIAS_LIMIT), 2.0**-60)
    return grid.snap_weights(least.astype(np.float32))


def scales_of_dead(
    bias: Float | None,
    scales: Float,
    codes: NDArray[np.int8],
    *,
    x_scale: float,
    grid: ScaleGrid = ANY_SCALE,
) -> Float:
    """Scales with those of all-zero channels replaced: any would do for the weights, one holds the bias
    finely. A weight with one scale keeps it.
    """
    if grid.per_tensor and codes.any():
        return scales
    magnitude = (np.abs(bias) if bias is not None else np.zeros(len(scales), np.float32)).astype(np.float64)
    dead = ~codes.reshape(len(codes), -1).any(1)
    wanted = np.maximum(magnitude / (float(x_scale) * _DEAD_BIAS_CODE), 2.0**-60)
    fine = grid.snap_weights(wanted.astype(np.float32))
    return np.where(dead, fine, scales).astype(np.float32)
