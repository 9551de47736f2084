"""What every way to choose is given, besides the prepared graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mixport.quantize.calibration_batches import CalibrationBatches
from mixport.quantize.learn.session import LearningSession
from mixport.quantize.prepared import Assignment, Prepared
from mixport.records.progress import Progress


@dataclass(frozen=True, kw_only=True)
class ChoiceContext:
    """Images, and where a choice may keep and show things.

    Attributes:
        batches: calibration images.
        learner: how codes are learned; None where nothing is.
        progress: bars.
    """

    batches: CalibrationBatches
    learner: LearningSession | None
    progress: Progress


class Choose(Protocol):
    """A way to choose every integer."""

    def __call__(self, prepared: Prepared, context: ChoiceContext) -> Assignment:
        """Choose; the graph is left as it is."""
        ...
