"""Mixed weight widths under a size budget: widths first, then any other way to choose with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from mixport.quantize.algorithms.context import ChoiceContext, Choose
from mixport.quantize.budget.auto_widths import Sizes, choose_widths, learned_bytes
from mixport.quantize.budget.sensitivity import round_to_nearest
from mixport.quantize.prepared import Assignment, Prepared


@dataclass(frozen=True, kw_only=True)
class ChooseUnderBudget:
    """A `Choose`: the widths of least loss that keep the scheme's budget, and the rest by another.

    Attributes:
        inner: chooses everything else.
        smallest_bytes: size of the file with the weights of every layer but the edges at the fewest bits of
            `target.budget_widths()`.
    """

    inner: Choose
    smallest_bytes: int

    def __call__(self, prepared: Prepared, context: ChoiceContext) -> Assignment:
        """Raises SizeBudgetError where no widths keep the budget."""
        images = context.batches.for_search()
        sizes = Sizes(
            smallest=self.smallest_bytes,
            floats=prepared.model.float_bytes,
            learned=0 if context.learner is None else learned_bytes(prepared.plan),
        )
        widths, search = choose_widths(
            prepared.graph,
            prepared.widths,
            lambda: context.batches.of(images, dynamic_batch=prepared.captured.dynamic_batch),
            scheme=prepared.scheme,
            target=prepared.target,
            sizes=sizes,
            images=len(images),
            rounding=partial(round_to_nearest, grid=prepared.rule.grid),
            progress=context.progress,
        )
        return replace(self.inner(prepared.with_widths(widths), context), search=search)
