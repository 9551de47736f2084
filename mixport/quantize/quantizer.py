"""The quantize stage: float model and calibration images in, a program with every integer fixed out.

Three steps with records between them: `prepare` rewrites the float graph and plans its sites, a `Choose`
gives every width, scale and integer, `emit` writes them into the graph.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from mixport.model.float_model import FloatModel
from mixport.quantize.algorithms.budget import ChooseUnderBudget
from mixport.quantize.algorithms.context import ChoiceContext, Choose
from mixport.quantize.algorithms.nearest import choose_nearest
from mixport.quantize.algorithms.reconstruction import choose_by_reconstruction
from mixport.quantize.calibration_batches import CalibrationBatches
from mixport.quantize.emit.emit import PROGRAM, RECORD, emit
from mixport.quantize.learn.loop.checkpoints import NoCheckpoints, UnitCheckpoints
from mixport.quantize.learn.session import LearningSession
from mixport.quantize.prepare import prepare
from mixport.records.calibration_set import CalibrationSet
from mixport.records.choices.reconstruction_preset import ReconstructionOptions
from mixport.records.choices.scheme import Scheme
from mixport.records.choices.width_table import WidthTable
from mixport.records.errors import BadOptionError
from mixport.records.progress import Progress, SilentProgress
from mixport.records.quantized_model import QuantizedModel
from mixport.records.targets import Target


def quantize(
    model: FloatModel,
    calibration: CalibrationSet,
    target: Target,
    *,
    scheme: Scheme,
    reconstruction: ReconstructionOptions | None = None,
    choose: Choose | None = None,
    table: WidthTable | None = None,
    level: bool = True,
    smallest_bytes: int | None = None,
    workdir: Path,
    checkpoints: UnitCheckpoints | None = None,
    progress: Progress | None = None,
) -> QuantizedModel:
    """Quantise `model` for `target`; writes program.pt2 and quantized.json into `workdir`.

    Args:
        model: float model.
        calibration: images; statistics are streamed over them once.
        target: what storage, zero points and shapes are allowed.
        scheme: widths.
        reconstruction: how codes are learned; None learns none.
        choose: way to choose; None is reconstruction where its options are given, else rounding to nearest.
        table: widths of single layers and sites that differ from the scheme's.
        level: see `prepare`; False for integers of a training.
        smallest_bytes: size of the file with the weights of every layer but the edges at the fewest bits of
            `target.budget_widths()`; needed where the scheme has a size budget.
        workdir: existing folder.
        checkpoints: finished units of an interrupted run, None keeps none.
        progress: bars.

    Raises:
        UnsupportedModelError, TargetError, BadOptionError: see `prepare`.
        SizeBudgetError: no widths keep the scheme's budget.
    """
    progress = progress or SilentProgress()
    learner = (
        None
        if reconstruction is None
        else LearningSession(
            model=model,
            calibration=calibration,
            options=reconstruction,
            workdir=workdir,
            checkpoints=checkpoints or NoCheckpoints(),
            progress=progress,
        )
    )
    prepared = prepare(
        model,
        calibration,
        target,
        scheme=scheme,
        learned=learner is not None or not level,
        alter_mlps=None if learner is None else learner.mlps,
        table=table,
        level=level,
        progress=progress,
    )
    if choose is None:
        choose = choose_nearest if learner is None else choose_by_reconstruction
    if scheme.budget is not None:
        if smallest_bytes is None:
            raise BadOptionError(
                f"scheme {scheme.name} has a size budget, but smallest_bytes is not given",
                hint="mixport.pipeline.build(...)",
            )
        choose = ChooseUnderBudget(inner=choose, smallest_bytes=smallest_bytes)
    batches = CalibrationBatches(model=model, calibration=calibration)
    context = ChoiceContext(batches=batches, learner=learner, progress=progress)
    return emit(prepared, choose(prepared, context), batches, workdir=workdir)


def read_quantized(workdir: Path) -> QuantizedModel:
    """Read back what `quantize` wrote; paths follow the folder."""
    record = TypeAdapter(QuantizedModel).validate_json((workdir / RECORD).read_bytes())
    fields: dict[str, Any] = {**record.__dict__, "program_path": workdir / PROGRAM}
    return QuantizedModel(**fields)
