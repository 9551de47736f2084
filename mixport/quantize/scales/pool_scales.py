"""Scales behind a global average pool, kept where the runtime's integer kernel accepts them.

ONNX Runtime's QLinearGlobalAveragePool (1.32, mlas/lib/qlgavgpool.cpp) refuses to run where x_scale / (H W
y_scale) is 256 or more. A pooled value that hardly varies, such as the mean of an instance norm, would get
such a scale. A mean of H W codes is a multiple of x_scale / (H W), so a scale far below that holds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from mixport.arithmetic.quant_params import QuantParams
from mixport.model.programs.fx_graph import shape_of, tensor_arg
from mixport.quantize.graph.roles import Kind
from mixport.quantize.scales.ranges import ScaleRule, finish_carrier
from mixport.quantize.sites.site_plan import QuantizationPlan, SitePlan

_STEPS_IN_A_SCALE = 128
"""Of the scale of what is pooled, divided by the pixels: half of what the kernel accepts."""


def widen_pool_scales(
    plan: QuantizationPlan, params: Mapping[str, QuantParams], rule: ScaleRule
) -> dict[str, QuantParams]:
    """All parameters, those behind global average pools with scales that the kernel accepts."""
    tied = {name for group in plan.groups for name in group.members}
    widened = dict(params)
    for site in plan.sites:
        if plan.kinds[site.source] is not Kind.POOL or site.base is not None or site.name in tied:
            continue
        least = _least_scale(plan, site, params)
        if params[site.name].scale < least:
            widened[site.name] = _with_scale(site, params[site.name], least, rule)
    return widened


def _least_scale(plan: QuantizationPlan, site: SitePlan, params: Mapping[str, QuantParams]) -> float:
    pooled = tensor_arg(site.source, 0)
    pixels = int(np.prod(shape_of(pooled)[-2:]))
    birth = pooled
    while plan.kinds[birth] is Kind.MOVE:
        birth = tensor_arg(birth, 0)
    scales = [params[one.name].scale for one in plan.sites if one.tensor is birth]
    return max(scales, default=0.0) / (pixels * _STEPS_IN_A_SCALE)


def _with_scale(site: SitePlan, old: QuantParams, least: float, rule: ScaleRule) -> QuantParams:
    scale = (
        float(rule.grid.snap(least, up=True))
        if rule.power_of_two
        else float(np.nextafter(np.float32(least), np.float32(np.inf)))
    )
    if old.storage == "int16":
        return replace(old, scale=scale)
    return finish_carrier(
        scale=scale, zero_point=old.zero_point, bits=site.bits, storage=old.storage, bounds=site.bounds
    )
