"""Scales of carriers that meet: every add becomes a sum of integers.

At an add the scales of both inputs are integer multiples of the output's scale, so that the sum of codes
needs no rounding and every runtime gives the same result (QLinearAdd with fractional ratios does not: x64
fuses multiply and add, others do not). Tensors joined by adds and concats share one base scale; only a branch
that ends in its add may take a multiple of it. The base scale has a 12-bit mantissa, so that ratio * scale *
code is exact in float32 too.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mixport.arithmetic.quant_params import QuantParams
from mixport.quantize.scales.histograms import Histogram
from mixport.quantize.scales.ranges import (
    P,
    ScaleRule,
    activation_params,
    carrier_zero_point,
    finish_carrier,
    histogram_error,
    short_mantissa,
)
from mixport.quantize.sites.planner import ScaleGroup, SitePlan

_RATIOS = (1, 2, 3, 4)
_CANDIDATES = 48


def group_params(
    group: ScaleGroup, sites: Mapping[str, SitePlan], histograms: Mapping[str, Histogram], *, rule: ScaleRule
) -> dict[str, QuantParams]:
    """Parameters of all members.

    The base scale minimises the sum over members of the L_p error relative to the member's own power; each
    leaf takes its best ratio.

    Args:
        group: members and constraints.
        sites: plans by name.
        histograms: by site name.
        rule: of the target.
    """
    alone = {
        name: activation_params(
            histograms[name], bits=sites[name].bits, storage="uint8", bounds=sites[name].bounds, rule=rule
        ).scale
        for name in group.members
    }
    low, high = min(alone.values()) * 0.7, max(alone.values()) * 1.1
    best: dict[str, QuantParams] = {}
    best_error = np.inf
    for scale in np.geomspace(low, high, _CANDIDATES):
        base = float(rule.grid.snap(scale)) if rule.power_of_two else short_mantissa(float(scale))
        params, error = _at_scale(
            base, group, sites, histograms, ratios=(1, 2, 4) if rule.power_of_two else _RATIOS, rule=rule
        )
        if error < best_error:
            best, best_error = params, error
    return best


def _at_scale(
    base: float,
    group: ScaleGroup,
    sites: Mapping[str, SitePlan],
    histograms: Mapping[str, Histogram],
    *,
    ratios: tuple[int, ...],
    rule: ScaleRule,
) -> tuple[dict[str, QuantParams], float]:
    params: dict[str, QuantParams] = {}
    total = 0.0
    shared = {name: names for names in group.equal_zero_point for name in names}
    for name in group.members:
        if name in params:
            continue
        tied = shared.get(name, (name,))
        choices = ratios if name in group.leaves else (1,)
        options = [
            (_tied_zero_point(tied, base * ratio, sites, histograms, rule), ratio) for ratio in choices
        ]
        (zero_point, error), ratio = min(options, key=lambda option: option[0][1])
        total += error
        for member in tied:
            site = sites[member]
            params[member] = finish_carrier(
                scale=base * ratio, zero_point=zero_point, bits=site.bits, storage="uint8", bounds=site.bounds
            )
    return params, total


def _tied_zero_point(
    names: tuple[str, ...],
    scale: float,
    sites: Mapping[str, SitePlan],
    histograms: Mapping[str, Histogram],
    rule: ScaleRule,
) -> tuple[int, float]:
    """One zero point for all `names`, from the member that reaches lowest, and the summed relative error."""
    levels = 2 ** sites[names[0]].bits - 1
    candidates = {
        carrier_zero_point(histograms[n], scale=scale, levels=levels, bounds=sites[n].bounds, rule=rule)[0]
        for n in names
    }
    best = min(candidates, key=lambda z: sum(_relative(histograms[n], scale, z, levels) for n in names))
    return best, sum(_relative(histograms[n], scale, best, levels) for n in names)


def _relative(histogram: Histogram, scale: float, zero_point: int, levels: int) -> float:
    values, counts = histogram.coarse
    power = float((counts * np.abs(values) ** P).sum())
    return (
        histogram_error(values, counts, scale=scale, zero_point=zero_point, levels=levels) / power
        if power > 0
        else 0.0
    )
