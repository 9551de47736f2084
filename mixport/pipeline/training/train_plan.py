"""The plan of a training: options resolved once, before any work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixport.calibration.recipe import CalibrationRecipe
from mixport.model.float_model import FloatModel
from mixport.model.request import ModelRequest
from mixport.pipeline.build_plan import model_request
from mixport.pipeline.options.build_options import spell_command
from mixport.pipeline.options.calibration import CalibrationAsked
from mixport.pipeline.options.train_options import TrainOptions
from mixport.records.choices.reconstruction_preset import DEFAULT, PRESETS, ReconstructionOptions
from mixport.records.choices.trained import Method
from mixport.records.errors import BadOptionError
from mixport.records.machine import compute_threads, resolve_device
from mixport.records.targets import Target, load_target
from mixport.train.data.batches import Augmentation, PixelMix
from mixport.train.loop.settings import LoopSettings
from mixport.train.nipq.budget import Budget
from mixport.train.nipq.method import NipqSettings
from mixport.train.robust.trainee import RobustSettings

NIPQ_RATE, ADAM_RATE, SGD_RATE = 5e-5, 1e-4, 0.01
"""Peak learning rates that are taken where none is typed; chosen on CIFAR-10's ResNet-20."""
_OPENING = ("model_arg", "classes", "input_size", "mean", "std", "crop")
_RHO = {"none": 0.05, "sam": 0.05, "asam": 0.5}
"""Radii of the papers (arXiv 2010.01412, section 3; arXiv 2102.11600, section 5)."""


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """Everything that a training does, settled.

    Attributes:
        method: of training.
        model: that is trained.
        teacher: that is imitated; None without one. The model itself where `teacher_is_model`.
        teacher_is_model: the float model teaches itself.
        labelled: folder or file of labelled images; None for images without labels.
        calibration: images without labels; used where `labelled` is None.
        target: what widths are for; None for methods that choose none.
        loop: of every method.
        nipq: settings of NIPQ, None for other methods.
        robust: settings of the other methods, None for NIPQ.
        batch: images a step.
        epochs: in all.
        augmentation: of single images.
        mix: of the pixels of two images.
        teacher_weight: of the divergence.
        temperature: of the divergence.
        label_weight: of the cross entropy.
        out: folder; None is one in dist for each model and method.
        cache: folder of stage results.
        command: that repeats the training.
        model_options: how the model was opened, as plain values; without weights.
    """

    method: Method
    model: ModelRequest
    teacher: ModelRequest | None
    teacher_is_model: bool
    labelled: Path | None
    calibration: CalibrationAsked
    target: Target | None
    loop: LoopSettings
    nipq: NipqSettings | None
    robust: RobustSettings | None
    batch: int
    epochs: int
    augmentation: Augmentation
    mix: PixelMix
    teacher_weight: float
    temperature: float
    label_weight: float
    out: Path | None
    cache: Path
    command: str
    model_options: dict[str, Any]

    def recipe(self, model: FloatModel) -> CalibrationRecipe:
        """Images without labels for this model. Raises BadOptionError as `CalibrationAsked.recipe`."""
        return self.calibration.recipe(
            preprocessing=model.preprocessing, class_names=model.class_names, glosses=model.glosses
        )

    def folder(self, model: str) -> Path:
        """Where the result goes."""
        return self.out or Path("dist") / f"{model}-{self.method}"


def resolve_training(options: TrainOptions) -> TrainPlan:
    """Settle every option, before hours of work and not after them.

    Raises:
        BadOptionError: a value that is not allowed, a device that is not here.
        TargetError: a target that is not known or cannot be read.
    """
    is_nipq, device = options.method == "nipq", resolve_device(options.device)
    optimiser = options.optimiser if options.optimiser != "auto" else ("adam" if is_nipq else "sgd")
    rate = options.lr
    if rate is None:
        rate = SGD_RATE if optimiser == "sgd" else NIPQ_RATE if is_nipq else ADAM_RATE
    loop = LoopSettings(
        optimiser=optimiser,
        lr=rate,
        weight_decay=options.weight_decay,
        warmup_epochs=options.warmup_epochs,
        ema=options.ema,
        sharpness=options.sharpness,
        rho=options.rho if options.rho is not None else _RHO[options.sharpness],
        seed=options.seed,
        device=device,
        amp=options.amp,
    )
    if options.amp and device != "cuda":
        raise BadOptionError(
            f"--amp on {device}, allowed on cuda alone", hint="leave --amp out, or --device cuda"
        )
    teaches_itself = options.teacher == "self" or (options.teacher is None and options.labelled is None)
    teacher = None
    if options.teacher not in (None, "none", "self"):
        teacher = ModelRequest(source=options.teacher, weights=options.teacher_weights, seed=options.seed)
    return TrainPlan(
        method=options.method,
        model=model_request(options),
        teacher=teacher,
        teacher_is_model=teaches_itself,
        labelled=options.labelled,
        calibration=CalibrationAsked(
            method="noise" if options.labelled is not None else options.data,
            images=options.images,
            seed=options.seed,
            prompts=options.prompts_asked(),
            generator=options.generator_settings(),
            generator_given="generator" in options.model_fields_set,
            filters=options.filter_settings(),
        ),
        target=load_target(options.target) if is_nipq else None,
        loop=loop,
        nipq=_nipq(options, device=device) if is_nipq else None,
        robust=None if is_nipq else _robust(options),
        batch=options.batch,
        epochs=options.epochs,
        augmentation=options.augment,
        mix=options.mix,
        teacher_weight=options.teacher_weight,
        temperature=options.temperature,
        label_weight=options.label_weight,
        out=options.out,
        cache=options.cache,
        command=spell_command("train", options),
        model_options={
            name: value
            for name, value in options.model_dump(mode="json", exclude_defaults=True).items()
            if name in _OPENING
        },
    )


def _nipq(options: TrainOptions, *, device: str) -> NipqSettings:
    noise = options.noise_epochs
    if noise is None:  # noise is there for the widths' sake
        noise = options.epochs // 2 if options.learn_widths else 0
    return NipqSettings(
        budget=Budget.parse(options.budget),
        noise=options.noise,
        learn_widths=options.learn_widths,
        block_weight=options.block_weight,
        noise_epochs=noise,
        finetune_epochs=options.epochs - noise,
        edge_bits=options.edge_bits,
        edge_convention=options.edge_convention,
        reconstruction=ReconstructionOptions(
            preset=PRESETS[DEFAULT],
            iters=options.iters,
            seed=options.seed,
            device=device,
            threads=compute_threads(),
        ),
    )


def _robust(options: TrainOptions) -> RobustSettings:
    words = options.method.split("+")
    return RobustSettings(
        symmetry=options.symmetry if "symreg" in words else 0.0,
        pairing=options.symmetry_pairing,
        bound=options.bound if "satnl" in words else None,
        kurtosis=options.kurtosis,
        depthwise=options.regularise_depthwise,
    )
