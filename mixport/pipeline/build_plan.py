"""The plan of a build: options resolved once, before any work. Nothing behind it reads option text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mixport.arithmetic.definitions import ONNXRUNTIME
from mixport.calibration.recipe import CalibrationRecipe
from mixport.model.float_model import FloatModel, ModelRequest
from mixport.model.request import PreprocessingOverrides
from mixport.pipeline.options.build_options import BuildOptions, command_line
from mixport.pipeline.options.calibration import CalibrationAsked
from mixport.pipeline.options.train_options import SweepOptions, TrainOptions
from mixport.pipeline.options.trained_input import TrainedInput, open_table, open_trained
from mixport.records.choices.algorithms import ALGORITHMS, NEAREST, Algorithm, find_algorithm
from mixport.records.choices.reconstruction_preset import ReconstructionOptions
from mixport.records.choices.scheme import Scheme
from mixport.records.choices.width_table import WidthTable
from mixport.records.machine import compute_threads, resolve_device
from mixport.records.runtime import Runtime
from mixport.records.targets import Target, load_target
from mixport.release.evaluate import Gate
from mixport.validate.runtimes import open_runtimes

_SMALL_INPUT = 64


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """Everything that a build does, settled.

    Attributes:
        model: which float model, and how it is opened.
        scheme: widths.
        targets: one bundle each.
        gates: conditions on the metrics.
        algorithm: way to choose integers.
        reconstruction: how it learns; None where it does not.
        calibration: what is asked of the calibration images; see `recipe`.
        calibration_folder: of the user's own images; None for drawn ones, archives and noise.
        labelled: labelled images to measure accuracy on.
        validation_images: images compared code by code; None chooses by input size.
        runtimes: besides onnxruntime in this process.
        runtime_names: of all of them.
        out: bundle folder; None is a folder in dist for each model, scheme and target.
        cache: folder of stage results.
        seed: of everything random.
        command: that repeats the build.
        steps_asked: reconstruction steps as they were asked for; None where nobody did.
        trained: folder of a training; None without one.
        table: widths of single layers and sites; None where the scheme says all.
    """

    model: ModelRequest
    scheme: Scheme
    targets: tuple[Target, ...]
    gates: tuple[Gate, ...]
    algorithm: Algorithm
    reconstruction: ReconstructionOptions | None
    calibration: CalibrationAsked
    calibration_folder: Path | None
    labelled: Path | None
    validation_images: int | None
    runtimes: tuple[Runtime, ...]
    runtime_names: tuple[str, ...]
    out: Path | None
    cache: Path
    seed: int
    command: str
    steps_asked: int | None
    trained: TrainedInput | None = None
    table: WidthTable | None = None

    def recipe(self, model: FloatModel) -> CalibrationRecipe:
        """The calibration images for this model. Raises BadOptionError where the method needs class names or
        meanings and there are none, or the generator cannot draw for such a model.
        """
        return self.calibration.recipe(
            preprocessing=model.preprocessing, class_names=model.class_names, glosses=model.glosses
        )

    def validation_count(self, size: tuple[int, int]) -> int:
        """Number of images compared code by code, for an input of (height, width) pixels."""
        if self.validation_images is not None:
            return self.validation_images
        return 256 if max(size) <= _SMALL_INPUT else 32

    def folders(self, model: str) -> list[Path]:
        """Where the bundles go: OUT, or OUT/TARGET of several targets; without OUT a folder in dist for each
        model, scheme and target.
        """
        names: Sequence[str] = [target.name for target in self.targets]
        if self.out is not None:
            return [self.out if len(names) == 1 else self.out / name for name in names]
        scheme = self.scheme.name.replace(":", "-")
        return [Path("dist") / f"{model}-{scheme}-{name}" for name in names]

    def rounded_to_nearest(self) -> BuildPlan:
        """The same with nothing learned: how the smallest file under a size budget is made."""
        return replace(self, algorithm=ALGORITHMS[NEAREST], reconstruction=None)

    @property
    def integers(self) -> TrainedInput | None:
        """The training whose integers are exported as they are; None where they are chosen here."""
        return self.trained if self.trained is not None and self.trained.integers else None


def resolve(options: BuildOptions) -> BuildPlan:
    """Settle every option, before hours of work and not after them.

    Raises:
        BadOptionError: a value that is not allowed, a gate without its images, a device that is not here.
        BadInputError, RuntimeUnavailableError: a runtime that does not exist or cannot run here.
        TargetError: a target that is not known, cannot be read, or does not hold the scheme.
    """
    trained = open_trained(options)
    chosen = None if trained is None else trained.scheme()
    scheme = options.parse_scheme() if chosen is None else chosen
    read = [load_target(name) for name in options.target]
    targets = tuple(one if options.portable else one.not_portable() for one in read)
    for target in targets:
        target.check_scheme(scheme)
    if trained is not None:
        trained.check_targets(targets)
    if trained is not None and trained.integers:
        algorithm, iters = ALGORITHMS[NEAREST], 0
    elif chosen is not None:
        algorithm, iters = find_algorithm(options.reconstruction), options.iters or 0
    else:
        algorithm, iters = options.resolve_algorithm()
    device = resolve_device(options.device)
    reconstruction = None
    if algorithm.preset is not None:
        preset = algorithm.preset
        if options.mlp_reconstruction is not None:
            preset = replace(preset, mlp_reconstruction=options.mlp_reconstruction)
        reconstruction = ReconstructionOptions(
            preset=preset,
            iters=iters,
            seed=options.seed,
            device=device,
            threads=compute_threads(),
        )
    asked, method = options.calibration_asked(), options.calib.strip()
    folder = Path(method.removeprefix("images:")).expanduser() if method.startswith("images:") else None
    return BuildPlan(
        model=model_request(options, trained=trained),
        scheme=scheme,
        targets=targets,
        gates=tuple(options.parse_gates()),
        algorithm=algorithm,
        reconstruction=reconstruction,
        calibration=replace(asked, generator=replace(asked.generator, device=device)),
        calibration_folder=folder,
        labelled=options.eval,
        validation_images=options.validation_images,
        runtimes=tuple(
            open_runtimes([name for name in options.runtime if name != "native"], arithmetic=ONNXRUNTIME.name)
        ),
        runtime_names=options.runtime,
        out=options.out,
        cache=options.cache,
        seed=options.seed,
        command=command_line(options),
        steps_asked=options.iters,
        trained=trained,
        table=open_table(options, trained),
    )


def model_request(
    options: BuildOptions | TrainOptions | SweepOptions, *, trained: TrainedInput | None = None
) -> ModelRequest:
    """The part of the options that says which float model, and how it is opened; a training may have weights
    of its own for it.
    """
    own = None if trained is None else trained.weights
    return ModelRequest(
        source=options.model,
        weights=own or options.weights,
        random_weights=options.random_weights and own is None,
        seed=options.seed,
        args=options.model_arg,
        classes=options.classes,
        overrides=PreprocessingOverrides(
            input_size=options.input_size,
            mean=options.mean,
            std=options.std,
            crop_fraction=options.crop,
        ),
    )
