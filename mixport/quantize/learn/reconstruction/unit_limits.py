"""What learning may not do, and what is said where it wanted to: steps and scales at their limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor, fx

from mixport.arithmetic.quant_params import QuantParams
from mixport.quantize.integers.nearest import (
    LayerIntegers,
    least_scales,
    read_site,
)
from mixport.quantize.learn.reconstruction.rounding import Rounding
from mixport.quantize.learn.reconstruction.state import LARGEST_FACTOR, LEAST_FACTOR, UnitState
from mixport.quantize.learn.reconstruction.task import Task
from mixport.quantize.learn.reconstruction.variance import Spread
from mixport.quantize.learn.units.units import Unit
from mixport.records.decision import Decision

Params = Mapping[str, QuantParams]
Integers = Mapping[fx.Node, LayerIntegers]


def steps_with_room(
    task: Task, steps: Mapping[str, float], fixed: Sequence[fx.Node], params: Params, integers: Integers
) -> tuple[dict[str, float], list[Decision]]:
    """Learned steps without those at which the bias of a layer that is not learned would leave int32.

    Args:
        task: see Task.
        steps: by site, real units.
        fixed: layers that keep their integers.
        params: of every site, calibrated.
        integers: of every layer.
    """
    kept, decisions = dict(steps), list[Decision]()
    for layer in fixed:
        site, stored = read_site(task.plan, layer).name, integers[layer]
        if site not in kept or kept[site] >= params[site].scale:
            continue
        least = least_scales(stored.bias, len(stored.scales), x_scale=kept[site])
        alive = stored.codes.reshape(len(stored.codes), -1).any(1)
        if bool((alive & (stored.scales < least)).any()):
            del kept[site]
            why = f"with a smaller one the bias of {task.widths[layer].name} would not fit int32"
            decisions.append(Decision(where=site, what="activation step kept as calibrated", why=why))
    return kept, decisions


def learned_step(params: QuantParams, factor: Tensor) -> float:
    """The step that a learned factor stands for, within its limits."""
    return float(np.float32(params.scale * float(factor.clamp(LEAST_FACTOR, LARGEST_FACTOR))))


def widened_output(unit: Unit, spread: Spread) -> Decision:
    """That an output was widened, and by how much."""
    what = f"output widened {spread.gain:.3g} times, to the variance of the float one"
    return Decision(where=unit.name, what=what, why="learned on noisy inputs, least squared error shrinks it")


def at_limit(unit: Unit, state: UnitState, rounding: Rounding | None) -> list[Decision]:
    """What wanted to leave its range: named, and held at its limit."""
    found = [
        Decision(
            where=name,
            what=f"activation step held at {limit} times its calibrated size",
            why="reconstruction drove it further",
        )
        for name, factor in state.factors.items()
        for limit in (LEAST_FACTOR, LARGEST_FACTOR)
        if (float(factor) <= limit if limit < 1 else float(factor) >= limit)
    ]
    if rounding is not None:
        channels = sum(rounding.at_floor(number) for number in range(len(rounding.layers)))
        if channels:
            what = f"weight scale of {channels} channels held at its floor"
            found.append(Decision(where=unit.name, what=what, why="reconstruction drove it towards zero"))
    return found
