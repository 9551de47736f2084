"""Rounding to nearest: scales of least error, nothing is learned. Other algorithms start from it."""

from __future__ import annotations

from mixport.quantize.algorithms.activations import calibrated_params
from mixport.quantize.algorithms.context import ChoiceContext
from mixport.quantize.integers.nearest import nearest_integers
from mixport.quantize.prepared import Assignment, Prepared


def choose_nearest(prepared: Prepared, context: ChoiceContext) -> Assignment:
    """Activation scales from statistics, weights rounded to nearest; a `Choose`."""
    params = calibrated_params(prepared, context.batches, progress=context.progress)
    integers, raised = nearest_integers(
        prepared.graph,
        prepared.plan,
        prepared.widths,
        params,
        pair_limit=prepared.target.accumulator.pair_limit,
        grid=prepared.rule.grid,
        given=prepared.table.weight_scales,
    )
    return Assignment(params=params, widths=prepared.widths, integers=integers, decisions=tuple(raised))
