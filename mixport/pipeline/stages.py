"""The stages of a build, each taken from the store where it was done before, and timed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mixport import lower as lowering
from mixport.calibration import calibrate as calibrating
from mixport.calibration.recipe import CalibrationRecipe
from mixport.lower.float_export import export_float
from mixport.model import run as model_run
from mixport.model.float_model import FloatModel, open_model
from mixport.model.output_classes import check_class_count
from mixport.model.request import ModelRequest
from mixport.model.scores import ModelScores
from mixport.pipeline.build_plan import BuildPlan
from mixport.pipeline.keys import (
    float_file_key,
    float_logits_key,
    lowered_key,
    quantized_key,
    static_file_key,
    unit_key,
)
from mixport.quantize import quantizer
from mixport.quantize.algorithms.trained import ChooseTrained
from mixport.records.calibration_set import CalibrationSet
from mixport.records.errors import InvariantError, StoreError
from mixport.records.fingerprint import sha256_arrays
from mixport.records.progress import Progress
from mixport.records.quantized_model import LoweredGraph, QuantizedModel
from mixport.records.targets import Target
from mixport.storage.store import Store
from mixport.validate.run.static_quantizer import quantize_static_file

_LOGITS_FILE, _FLOAT_FILE, _STATIC_FILE = "logits.npy", "float.onnx", "static.onnx"


class StageLog:
    """Wall time of each stage, in the order they ran, and a note when one starts and when it is done.

    Attributes:
        seconds: by stage.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self.seconds: dict[str, float] = {}
        self._note = note
        self._reused: set[str] = set()

    @contextlib.contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Time what happens inside."""
        self._note(f"{name} ...")
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        self._note(f"{name}: {self.seconds[name]:.1f} s{' (from the cache)' if name in self._reused else ''}")

    def reuse(self, name: str) -> None:
        """Say that a stage's result came from the cache."""
        self._reused.add(name)

    def note(self, text: str) -> None:
        """Say something that is no stage."""
        self._note(text)

    def copy(self) -> StageLog:
        """A log that starts with the stages of this one, for one of several targets."""
        log = StageLog(self._note)
        log.seconds.update(self.seconds)
        return log


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """What every stage needs besides its inputs.

    Attributes:
        store: where results are kept.
        progress: shows bars.
        log: times stages.
    """

    store: Store
    progress: Progress
    log: StageLog


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A quantised model and the key that its integers depend on."""

    model: QuantizedModel
    key: str


def load(context: StageContext, request: ModelRequest) -> FloatModel:
    """The float model that is asked for. Raises BadInputError, BadOptionError, UnsupportedModelError."""
    with context.log.stage("load"):
        model = open_model(request)
        if request.classes is not None:
            check_class_count(model, source=request.classes)
    for note in model.notes:
        context.log.note(f"{note.where}: {note.what} ({note.why})")
    return model


def calibrate(context: StageContext, model: FloatModel, recipe: CalibrationRecipe) -> CalibrationSet:
    """Make the calibration images, or take them from the store."""
    known = len(context.store.damaged)
    with context.log.stage("calibrate"):
        scores = ModelScores(model, progress=context.progress)
        made = calibrating.calibrate(recipe, store=context.store, progress=context.progress, scores=scores)
    tell_damaged(context, since=known)
    if made.count < recipe.images:
        context.log.note(
            f"calibration: {recipe.images} images were asked for, {recipe.source or recipe.method} "
            f"has {made.count}"
        )
    if made.blackened:
        context.log.note(
            f"calibration: {made.blackened} of {made.count} images are black, the generator's safety "
            "checker objected to them; "
            "hint: --no-gen-safety-checker, or other --classes or --template"
        )
    return made


def quantize(
    context: StageContext,
    plan: BuildPlan,
    model: FloatModel,
    calibration: CalibrationSet,
    target: Target,
    *,
    model_key: str,
    smallest_bytes: int | None = None,
) -> Quantized:
    """Fix every integer, or take them from the store.

    Args:
        context: store, bars and log.
        plan: scheme, algorithm and how it learns.
        model: float model.
        calibration: images.
        target: what the program is for.
        model_key: of the float model.
        smallest_bytes: what `measure_smallest` gave; None where the scheme has no size budget.
    """
    key = quantized_key(
        model=model_key,
        calibration=calibration,
        target=target,
        scheme=plan.scheme,
        algorithm=plan.algorithm,
        reconstruction=plan.reconstruction,
        smallest_bytes=smallest_bytes,
        table=plan.table,
        trained=None if plan.integers is None else plan.integers.sha256,
    )
    trained = plan.integers

    def make(workdir: Path) -> None:
        quantizer.quantize(
            model,
            calibration,
            target,
            scheme=plan.scheme,
            reconstruction=plan.reconstruction,
            choose=plan.algorithm.load() if trained is None else ChooseTrained(folder=trained.folder),
            table=plan.table,
            level=trained is None,
            smallest_bytes=smallest_bytes,
            workdir=workdir,
            checkpoints=_StoredUnits(store=context.store, quantized=key),
            progress=context.progress,
        )

    with context.log.stage("quantize"):
        folder = _stored(context, "quantized", key, make, stage="quantize")
        return Quantized(model=quantizer.read_quantized(folder), key=key)


def measure_smallest(
    context: StageContext,
    plan: BuildPlan,
    model: FloatModel,
    calibration: CalibrationSet,
    target: Target,
    *,
    model_key: str,
) -> int | None:
    """Size of the file with every layer but the edges at the fewest bits of the target, rounded to nearest;
    None where the scheme has no size budget.

    The one place where a build goes back: a budget bounds the file, and how much of a file is not weights
    only a file shows.
    """
    if plan.scheme.budget is None:
        return None
    narrow = replace(plan.rounded_to_nearest(), scheme=plan.scheme.at(target.budget_widths()[0]))
    plain = replace(context, log=StageLog(context.log.note))
    with context.log.stage("smallest file"):
        quantized = quantize(plain, narrow, model, calibration, target, model_key=model_key)
        return lower(plain, quantized, target).model_path.stat().st_size


@dataclass(frozen=True, kw_only=True)
class _StoredUnits:
    """Finished units of one quantised model as cache entries: `UnitCheckpoints`."""

    store: Store
    quantized: str

    def find(self, place: int | str) -> Path | None:
        return self.store.get("units", unit_key(quantized=self.quantized, place=place))

    def keep(self, place: int | str) -> AbstractContextManager[Path]:
        return self.store.create("units", unit_key(quantized=self.quantized, place=place))


def lower(context: StageContext, quantized: Quantized, target: Target) -> LoweredGraph:
    """Write the ONNX file, or take it from the store. Raises InvariantError where it breaks the scheme's size
    budget.
    """
    key = lowered_key(quantized=quantized.key, target=target)

    def make(workdir: Path) -> None:
        lowering.lower(quantized.model, target, workdir=workdir)

    with context.log.stage("lower"):
        lowered = lowering.read_lowered(_stored(context, "lowered", key, make, stage="lower"))
    _check_budget(quantized.model, lowered)
    return lowered


def float_logits(
    context: StageContext, model: FloatModel, images: NDArray[np.uint8], *, model_key: str
) -> NDArray[np.float32]:
    """The float model's outputs, float32 [N, classes], for uint8 [N, H, W, 3] images; from the store where
    they were computed before.
    """
    key = float_logits_key(model=model_key, images_sha256=sha256_arrays({"images": images}))

    def make(workdir: Path) -> None:
        np.save(workdir / _LOGITS_FILE, model_run.float_logits(model, images, progress=context.progress))

    with context.log.stage("float model"):
        folder = _stored(context, "float-logits", key, make, stage="float model")
        return np.load(folder / _LOGITS_FILE, allow_pickle=False)


def float_file(context: StageContext, model: FloatModel, *, model_key: str) -> Path:
    """torch's ONNX export of the float model, batch 1; from the store where it was made before. Raises
    UnsupportedModelError.
    """

    def make(workdir: Path) -> None:
        export_float(model.module, workdir / _FLOAT_FILE, input_shape=model.input_shape)

    with context.log.stage("float file"):
        return (
            _stored(context, "float-file", float_file_key(model=model_key), make, stage="float file")
            / _FLOAT_FILE
        )


def static_file(context: StageContext, source: Path, images: NDArray[np.float32], *, model_key: str) -> Path:
    """quantize_static's file from a float one; from the store where it was made before. Raises
    UnsupportedModelError.

    Args:
        context: store, bars and log.
        source: what `float_file` gave.
        images: float32 [N, C, H, W] to calibrate on, preprocessed.
        model_key: of the float model.
    """
    key = static_file_key(
        float_file=float_file_key(model=model_key), images_sha256=sha256_arrays({"images": images})
    )

    def make(workdir: Path) -> None:
        quantize_static_file(source, workdir / _STATIC_FILE, images=images)

    with context.log.stage("quantize_static file"):
        return _stored(context, "static-file", key, make, stage="quantize_static file") / _STATIC_FILE


def _check_budget(quantized: QuantizedModel, lowered: LoweredGraph) -> None:
    search, size = quantized.width_search, lowered.model_path.stat().st_size
    if search is not None and size > search.budget_bytes:
        raise InvariantError(
            f"the file takes {size} bytes, more than the bound of {search.bound_bytes} that widths "
            "were chosen by; "
            f"{quantized.scheme.name} allows {search.budget_bytes}"
        )


def tell_damaged(context: StageContext, *, since: int = 0) -> None:
    """Say which cache entries were found damaged, where they lie now, and that they are made again: all but
    the first `since`.
    """
    for entry in context.store.damaged[since:]:
        where = f"kept in {entry.moved_to}" if entry.moved_to is not None else "it could not be moved away"
        context.log.note(
            f"cache entry {entry.kind}/{entry.key[:12]} is damaged ({'; '.join(entry.problems)}): "
            f"made again, {where}"
        )


def _stored(context: StageContext, kind: str, key: str, make: Callable[[Path], None], *, stage: str) -> Path:
    known = len(context.store.damaged)
    found = context.store.get(kind, key)
    tell_damaged(context, since=known)
    if found is not None:
        context.log.reuse(stage)
        return found
    known = len(context.store.damaged)
    with context.store.create(kind, key) as workdir:
        make(workdir)
    tell_damaged(context, since=known)  # parts that it goes on from: reconstructed units
    made = context.store.get(kind, key)
    if made is None:
        raise StoreError(
            f"cache entry {kind}/{key} cannot be read back",
            hint="check the disk, or choose another --cache DIR",
        )
    return made
