"""Learned intervals as parameters of the sites that ship."""

from __future__ import annotations

from collections.abc import Mapping

from mixport.arithmetic.quant_params import QuantParams
from mixport.quantize.prepared import Prepared
from mixport.quantize.scales.ranges import finish_carrier
from mixport.train.network.quantised import learned_sites
from mixport.train.nipq.network import NoisyNetwork, steps_of, tensor_names


def learned_params(
    network: NoisyNetwork, prepared: Prepared, params: Mapping[str, QuantParams]
) -> dict[str, QuantParams]:
    """Parameters with the learned interval of every tensor that has one at its whole width.

    A tensor that is read at 8 bits may share the codes of a carrier; its scale is then tied, and stays.

    Args:
        network: of the noise phase.
        prepared: graph with the whole widths.
        params: of every site, calibrated.
    """
    names = tensor_names(network.prepared)
    number = {names[name]: place for place, name in enumerate(network.free_sites)}
    moves, made, rule = learned_sites(prepared.plan), dict(params), prepared.rule
    for site in prepared.plan.sites:
        place = number.get(site.base or site.name)
        if place is None or site.name not in moves:
            continue
        levels = steps_of(site.bits)
        scale = float(rule.grid.snap(float(network.interval[place].detach()) / levels))
        made[site.name] = finish_carrier(
            scale=scale,
            zero_point=round(network.below[place] * levels),
            bits=site.bits,
            storage=params[site.name].storage,
            bounds=site.bounds,
        )
    return made
