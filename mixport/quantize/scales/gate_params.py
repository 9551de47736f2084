"""Parameters of hard sigmoids that take over the codes of what they read; see gated_functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from torch import fx

from mixport.arithmetic.quant_params import QuantParams
from mixport.model.programs.fx_graph import aten, tensor_arg
from mixport.quantize.scales.ranges import ScaleRule
from mixport.quantize.sites.site_plan import QuantizationPlan, SitePlan

_BEND = 3.0
"""hardsigmoid(x) = clamp(x + 3, 0, 6) / 6 is 0 up to -3 and 1 from 3 on."""

_LEAST_STEPS = 8
"""Codes between 0 and 3, below which a scale that divides 3 would differ too much from the one that was
chosen.
"""

_WIDEST = 1.25
"""How much wider than its values a tensor's range may get for the sake of an exact gate."""


def settle_gates(
    plan: QuantizationPlan, params: Mapping[str, QuantParams], rule: ScaleRule
) -> dict[str, QuantParams]:
    """All parameters; where a hard sigmoid may have the codes of its own input, those of both.

    What a hard swish reads is of no interest below -3, where the result is 0.
    """
    settled = dict(params)
    if rule.power_of_two or rule.zero_point != "any":
        return settled
    tied = {name for group in plan.groups for name in group.members}
    first = {site.tensor: site for site in reversed(plan.sites) if site.base is None}
    for gate in plan.sites:
        source = first.get(tensor_arg(gate.chain[0], 0)) if _is_hard_sigmoid(gate) else None
        if source is None or not tied.isdisjoint({gate.name, source.name}):
            continue
        pair = _linked(source, settled[source.name])
        if pair is not None:
            settled[source.name], settled[gate.name] = pair
    return settled


def _is_hard_sigmoid(site: SitePlan) -> bool:
    return (
        len(site.chain) == 1
        and site.chain[0].target is aten.hardsigmoid.default
        and site.base is None
        and site.bits == 8
    )


def _linked(source: SitePlan, old: QuantParams) -> tuple[QuantParams, QuantParams] | None:
    """Parameters of the input and of the gate, None where the input's range does not suit."""
    if old.storage != "uint8" or (old.qmin, old.qmax) != (0, 255) or source.bounds is not None:
        return None
    low, high = -old.zero_point * old.scale, (255 - old.zero_point) * old.scale
    gates = [user for user in source.tensor.users if user.target is aten.hardsigmoid.default]
    if all(user in gates or _multiplies(user, source.tensor, gates) for user in source.tensor.users):
        # Nothing below -3 is read: codes start there.
        if _BEND + high > _WIDEST * (high - max(low, -_BEND)):
            return None
        steps = int(255 * _BEND // (_BEND + high))
        zero_point = steps
    else:
        steps, zero_point = int(_BEND // old.scale), old.zero_point
    if steps < _LEAST_STEPS or zero_point < steps:
        return None
    scale = float(np.float32(_BEND / steps))
    x = replace(old, scale=scale, zero_point=zero_point)
    return x, QuantParams(
        scale=float(np.float32(scale / (2 * _BEND))),
        zero_point=zero_point - steps,
        qmin=0,
        qmax=255,
        storage="uint8",
    )


def _multiplies(user: fx.Node, tensor: fx.Node, gates: list[fx.Node]) -> bool:
    return (
        user.target is aten.mul.Tensor
        and set(user.all_input_nodes) <= {tensor, *gates}
        and tensor in user.all_input_nodes
    )
