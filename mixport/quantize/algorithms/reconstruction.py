"""Learned rounding: unit by unit from rounding to nearest, as a preset says."""

from __future__ import annotations

from dataclasses import replace

from mixport.quantize.algorithms.context import ChoiceContext
from mixport.quantize.algorithms.nearest import choose_nearest
from mixport.quantize.learn.reconstruction.task import Task
from mixport.quantize.prepared import Assignment, Prepared
from mixport.records.errors import InvariantError


def choose_by_reconstruction(prepared: Prepared, context: ChoiceContext) -> Assignment:
    """Codes, scales, steps and biases learned, as far as the preset learns them; a `Choose`."""
    return reconstruct_from(choose_nearest(prepared, context), prepared, context)


def reconstruct_from(start: Assignment, prepared: Prepared, context: ChoiceContext) -> Assignment:
    """The same from any choice of scales and integers."""
    if context.learner is None:
        raise InvariantError("reconstruction has no learner")
    learned = context.learner.units(
        Task(
            graph=prepared.graph,
            plan=prepared.plan,
            widths=start.widths,
            params=start.params,
            integers=start.integers,
            input_shape=prepared.model.input_shape,
            dynamic_batch=prepared.captured.dynamic_batch,
            grid=prepared.rule.grid,
        )
    )
    return replace(
        start,
        params=learned.params,
        integers=learned.integers,
        decisions=(*start.decisions, *learned.decisions),
        reconstruction=replace(learned.record, mlps=prepared.mlps, mlp_iters=prepared.mlp_iters),
    )
