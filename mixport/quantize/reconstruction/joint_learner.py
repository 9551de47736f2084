"""All units at once: from where each ended by itself to the integers and steps of the joint stage, or the reason why they stay."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import fx

from mixport.artifacts import Decision, UnitRecord
from mixport.quantize.nearest import LayerIntegers
from mixport.quantize.reconstruction.caches import Activations
from mixport.quantize.reconstruction.joint import JointUnit, learn_jointly, mean_loss
from mixport.quantize.reconstruction.learner import Integers, Latents, Params, UnitLearner, at_limit
from mixport.quantize.reconstruction.optimise import NotLearnedError
from mixport.quantize.reconstruction.unit_file import FinishedUnit
from mixport.quantize.reconstruction.units import Unit

NAME = "all units"


def learn_together(
    learner: UnitLearner,
    units: Sequence[Unit],
    images: Activations,
    params: Params,
    integers: Integers,
    latents: Latents,
    *,
    steps: int,
    advance: Callable[[int, float], None],
) -> FinishedUnit:
    """Learn all units together; they stay as they are where the loss would grow, or where learning breaks down.

    Args:
        learner: of the units.
        units: the whole model, in graph order.
        images: preprocessed calibration images.
        params: of every site, as the units left them.
        integers: of every layer, likewise.
        latents: where the codes of learned layers were before they were rounded.
        steps: of the optimiser.
        advance: is told the number of steps just done, and the latest loss.
    """
    parts: list[JointUnit] = []
    for unit in units:
        layers, sites = learner.names(unit) or ([], [])
        learned = learner.to_learn(layers, sites, params, integers, latents)
        parts.append(JointUnit(unit=unit, state=learner.state(unit, params, integers), learned=learned))
    before = mean_loss(learner.executor, parts, images, preset=learner.preset, batch=learner.batch)
    try:
        if not math.isfinite(before):
            raise NotLearnedError("the loss is no finite number")
        seed = learner.seed * 7919 + len(units)
        learn_jointly(learner.executor, parts, images, preset=learner.preset, steps=steps, seed=seed, advance=advance)
        moved, made, decisions = _result(learner, parts, params, integers)
        shipped_params, shipped_integers = learner.with_steps(params, moved), {**integers, **made}
        shipped = [replace(part, state=learner.state(part.unit, shipped_params, shipped_integers)) for part in parts]
        after = mean_loss(learner.executor, shipped, images, preset=learner.preset, batch=learner.batch)
        if not after <= before:
            raise NotLearnedError(f"the loss would be {after:.3g}, not {before:.3g}")
    except NotLearnedError as problem:
        moved, made, after = {}, {}, before
        decisions = [Decision(where=NAME, what="left as each unit ended by itself", why=str(problem))]
    record = UnitRecord(
        name=NAME,
        layers=tuple(learner.task.widths[layer].name for layer in made),
        sites=tuple(moved),
        error_before=before if math.isfinite(before) else None,
        error_after=after if math.isfinite(after) else None,
    )
    return FinishedUnit(integers=made, latents={}, steps=moved, record=record, decisions=tuple(decisions))


def _result(
    learner: UnitLearner, parts: Sequence[JointUnit], params: Params, integers: Integers
) -> tuple[dict[str, float], dict[fx.Node, LayerIntegers], list[Decision]]:
    """Steps, integers, and what wanted to leave its range."""
    moved: dict[str, float] = {}
    made: dict[fx.Node, LayerIntegers] = {}
    decisions: list[Decision] = []
    for part in parts:
        steps, kept = learner.steps(part.unit, part.state, part.learned.layers, params, integers)
        moved.update(steps)
        decisions += [*at_limit(part.unit, part.state, part.learned.rounding), *kept]
    for part in parts:
        made.update(learner.finish(part.learned, learner.with_steps(params, moved))[0])
    return moved, made, decisions
