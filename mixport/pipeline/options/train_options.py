"""Options of `mixport train` and `mixport sweep`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self, cast

from pydantic import Field, field_validator

from mixport.pipeline.options.calibration import drawn_method
from mixport.pipeline.options.checked import read_options
from mixport.pipeline.options.model_options import ModelOptions
from mixport.pipeline.options.shown import FILES, IMAGES, LOOP, METHOD, QUANTISATION, Shown
from mixport.records.choices.scheme import DEFAULT_EDGE_CONVENTION, EdgeConvention
from mixport.records.choices.trained import Method
from mixport.records.errors import BadOptionError

_ONLY_NIPQ = (
    "budget",
    "noise",
    "noise_epochs",
    "learn_widths",
    "block_weight",
    "iters",
    "target",
    "edge_bits",
    "edge_convention",
)
_ONLY_ROBUST = ("symmetry", "symmetry_pairing", "bound", "kurtosis", "regularise_depthwise")


class TrainOptions(ModelOptions):
    """Every option of `mixport train`, under the name it has on the command line."""

    method: Annotated[
        Method,
        Shown(
            help=(
                "nipq learns widths and intervals under --budget; symreg and satnl make weights that survive "
                "many widths; plain is a fine-tune to compare with."
            ),
            panel=METHOD,
        ),
    ] = "nipq"
    data: Annotated[
        str,
        Shown(
            help=(
                "Labelled images: npz with images uint8 NHWC and labels int64, or one folder per class. Or "
                "none: mixup, single or genq draw images, images:DIR and noise take others without labels."
            ),
            panel=METHOD,
            metavar="DIR|FILE.npz|METHOD",
        ),
    ] = "mixup"
    teacher: Annotated[
        str | None,
        Shown(
            help="Imitate the outputs of a float model: self is MODEL, none is none, else as MODEL is named.",
            panel=METHOD,
            metavar="self|MODEL",
            default="self without labels, none with labels",
        ),
    ] = None
    teacher_weights: Annotated[
        Path | None,
        Shown(help="State dict of the teacher.", panel=METHOD, metavar="FILE", default="the teacher's own"),
    ] = None
    teacher_weight: Annotated[
        float,
        Shown(help="Of the divergence from the teacher in the loss.", panel=METHOD, metavar="X"),
    ] = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    temperature: Annotated[
        float,
        Shown(
            help="Divides the outputs before the divergence from the teacher: high, small outputs count too.",
            panel=METHOD,
            metavar="X",
        ),
    ] = Field(default=1.0, gt=0.0, allow_inf_nan=False)
    label_weight: Annotated[
        float,
        Shown(help="Of the cross entropy with the labels in the loss.", panel=METHOD, metavar="X"),
    ] = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    budget: Annotated[
        str,
        Shown(
            help=(
                "Of nipq: average bits of weights and activations (w3a4), size of model.onnx (90KB, "
                "90KB:a4), or bit-operations an image (1.5GBOP)."
            ),
            panel=METHOD,
            metavar="wWaA|SIZE|BOPS",
        ),
    ] = "w4a4"
    learn_widths: Annotated[
        bool,
        Shown(
            help="Of nipq: learn a width for each site, or keep the budget's everywhere.",
            panel=METHOD,
            default="learn",
            both=True,
        ),
    ] = True
    noise: Annotated[
        Literal["histogram", "uniform"],
        Shown(
            help=(
                "Of nipq: noise with the distribution of the true rounding error, or uniform, which is "
                "faster."
            ),
            panel=METHOD,
        ),
    ] = "histogram"
    noise_epochs: Annotated[
        int | None,
        Shown(
            help="Of nipq: epochs with noise; the others fine-tune what ships.",
            panel=METHOD,
            metavar="N",
            default="half of --epochs where widths are learned, else 0",
        ),
    ] = Field(default=None, ge=0)
    iters: Annotated[
        int,
        Shown(
            help=(
                "Of nipq: reconstruction steps per unit, as in build, once the widths of weights are known; "
                "the fine-tune starts from there."
            ),
            panel=METHOD,
            metavar="N",
        ),
    ] = Field(default=0, ge=0)
    block_weight: Annotated[
        float,
        Shown(
            help=(
                "Of nipq: weight in the loss of how far what each block hands on is from the float model's, "
                "relative to its size."
            ),
            panel=METHOD,
            metavar="X",
        ),
    ] = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    symmetry: Annotated[
        float,
        Shown(help="Of symreg: weight of the symmetry loss.", panel=METHOD, metavar="X"),
    ] = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    symmetry_pairing: Annotated[
        Literal["1:1", "2:2"],
        Shown(help="Of symreg: pairs of weights, or pairs of two.", panel=METHOD),
    ] = "1:1"
    bound: Annotated[
        float,
        Shown(
            help="Of satnl: bound of a layer, in standard deviations of its first weights.",
            panel=METHOD,
            metavar="X",
        ),
    ] = Field(default=2.0, gt=0.0, allow_inf_nan=False)
    kurtosis: Annotated[
        float,
        Shown(help="Weight of kurtosis regularisation (KURE).", panel=METHOD, metavar="X"),
    ] = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    sharpness: Annotated[
        Literal["none", "sam", "asam"],
        Shown(help="Sharpness-aware minimisation, at twice the cost.", panel=METHOD),
    ] = "none"
    rho: Annotated[
        float | None,
        Shown(
            help="Radius of its neighbourhood.",
            panel=METHOD,
            metavar="X",
            default="0.05 for sam, 0.5 for asam",
        ),
    ] = Field(default=None, gt=0.0, allow_inf_nan=False)
    regularise_depthwise: Annotated[
        bool,
        Shown(help="Regularise depthwise convolutions too, which costs accuracy.", panel=METHOD),
    ] = False
    epochs: Annotated[int, Shown(help="Epochs in all.", panel=LOOP, metavar="N")] = Field(default=10, ge=1)
    batch: Annotated[int, Shown(help="Images a step.", panel=LOOP, metavar="N")] = Field(default=128, ge=1)
    lr: Annotated[
        float | None,
        Shown(help="Peak learning rate.", panel=LOOP, metavar="X", default="by method and optimiser"),
    ] = Field(default=None, gt=0.0, allow_inf_nan=False)
    optimiser: Annotated[
        Literal["auto", "sgd", "adam"],
        Shown(help="SGD with Nesterov momentum, or AdamW.", panel=LOOP, default="adam for nipq, else sgd"),
    ] = "auto"
    weight_decay: Annotated[float, Shown(help="Of weights alone.", panel=LOOP, metavar="X")] = Field(
        default=1e-4, ge=0.0, allow_inf_nan=False
    )
    warmup_epochs: Annotated[
        float, Shown(help="Epochs in which the rate rises, at the start of a phase.", panel=LOOP, metavar="X")
    ] = Field(default=0.25, ge=0.0, allow_inf_nan=False)
    ema: Annotated[
        float, Shown(help="Decay of the average of the weights, 0 for none.", panel=LOOP, metavar="X")
    ] = Field(default=0.0, ge=0.0, lt=1.0)
    amp: Annotated[
        bool,
        Shown(
            help=(
                "On CUDA: passes of float models in bfloat16. What ships is trained in float32: of nipq, the "
                "teacher alone."
            ),
            panel=LOOP,
        ),
    ] = False
    augment: Annotated[Literal["flip+crop", "flip", "none"], Shown(help="Of single images.", panel=LOOP)] = (
        "flip+crop"
    )
    mix: Annotated[
        Literal["none", "mixup", "cutmix"],
        Shown(help="Pixels of two images mixed, with their labels.", panel=LOOP),
    ] = "none"
    images: Annotated[
        int,
        Shown(help="Images to train on, of a method without labels.", panel=IMAGES, metavar="N"),
    ] = Field(default=4096, ge=2)
    seed: Annotated[int, Shown(help="Seed of everything random.", panel=LOOP, metavar="S")] = Field(
        default=0, ge=0
    )
    target: Annotated[
        str,
        Shown(help="What the widths are for.", panel=QUANTISATION, metavar="NAME|FILE"),
    ] = "ort-cpu"
    edge_bits: Annotated[
        int, Shown(help="Bits of the first and the last layer.", panel=QUANTISATION, metavar="N")
    ] = Field(default=8, ge=2, le=8)
    edge_convention: Annotated[
        EdgeConvention, Shown(help="What has these bits, as in build.", panel=QUANTISATION)
    ] = DEFAULT_EDGE_CONVENTION
    out: Annotated[
        Path | None,
        Shown(help="Folder of the result.", panel=FILES, metavar="FOLDER", default="dist/MODEL-METHOD"),
    ] = None
    cache: Annotated[
        Path,
        Shown(help="Folder of images, epochs and stage results.", panel=FILES, metavar="DIR"),
    ] = Path("calib_cache")

    @classmethod
    def of(cls, values: Mapping[str, object]) -> Self:
        """Check values and fill defaults. Raises BadOptionError that names the option, what it got and what
        is allowed.
        """
        options = read_options(cls, values, command="train")
        options.check()
        return options

    def check(self) -> None:
        """Refuse, before any work, what contradicts itself. Raises BadOptionError."""
        if self.random_weights and self.weights is not None:
            raise BadOptionError(
                "--random-weights and --weights contradict each other", hint="leave one of them out"
            )
        for name, why in self._without_effect().items():
            if name in self.model_fields_set:
                raise BadOptionError(
                    f"--{name.replace('_', '-')} has no effect {why}", hint="leave one of them out"
                )
        if self.warmup_epochs >= self.epochs:
            raise BadOptionError(
                f"--warmup-epochs is {self.warmup_epochs:g}, allowed less than --epochs {self.epochs}",
                hint="a larger --epochs",
            )
        if self.noise_epochs is not None and self.noise_epochs > self.epochs:
            raise BadOptionError(
                f"--noise-epochs is {self.noise_epochs}, allowed up to --epochs {self.epochs}",
                hint="a larger --epochs",
            )
        if self.labelled is None and self.teacher == "none":
            raise BadOptionError(
                f"--data {self.data} has no labels and --teacher none: nothing to learn from",
                hint="leave --teacher out",
            )
        taught = self.teacher_weight > 0 and (
            self.teacher not in (None, "none") if self.labelled is not None else True
        )
        labelled = self.labelled is not None and self.label_weight > 0
        if not (taught or labelled or self.block_weight > 0):
            raise BadOptionError(
                f"--label-weight {self.label_weight:g} and --teacher-weight {self.teacher_weight:g} leave "
                f"nothing to learn from {self.data}",
                hint="--label-weight counts with labels, --teacher-weight with a --teacher",
            )
        self.check_drawing("noise" if self.labelled is not None else self.data)

    def _without_effect(self) -> dict[str, str]:
        """Options that this training does not read, and why."""
        method, parts = f"with --method {self.method}", self.method.split("+")
        other: tuple[str, ...] = _ONLY_ROBUST if self.method == "nipq" else _ONLY_NIPQ
        found: dict[str, str] = dict.fromkeys(other, method)
        if self.method != "nipq":
            if "symreg" not in parts:
                found |= dict.fromkeys(("symmetry", "symmetry_pairing"), method)
            if "satnl" not in parts:
                found["bound"] = method
        if self.sharpness == "none":
            found["rho"] = "without --sharpness"
        if self.teacher in (None, "self", "none"):
            found["teacher_weights"] = "without a --teacher MODEL"
        if self.labelled is not None and self.teacher in (None, "none"):
            found |= dict.fromkeys(("teacher_weight", "temperature"), "without a --teacher")
        if self.labelled is not None:
            found["images"] = f"with --data {self.data}, whose images are all taken"
        return found

    @property
    def labelled(self) -> Path | None:
        """Folder or file of labelled images; None for a method that makes images without labels."""
        word = self.data.strip()
        is_method = drawn_method(word) is not None or word == "noise" or word.startswith("images:")
        return None if is_method else Path(word).expanduser()


class SweepOptions(ModelOptions):
    """Every option of `mixport sweep`, under the name it has on the command line."""

    schemes: Annotated[
        tuple[str, ...],
        Shown(help="Schemes, each a bundle of its own.", panel=QUANTISATION, metavar="wWaA,..."),
    ] = ("w8a8", "w4a4", "w3a4", "w2a4")
    iters: Annotated[
        tuple[int, ...],
        Shown(
            help="Reconstruction steps per unit; a row for each number, 0 rounds to nearest.",
            panel=QUANTISATION,
            metavar="N,...",
        ),
    ] = (0,)
    trained: Annotated[
        Path | None,
        Shown(help="Weights of this training instead of MODEL's own.", panel=QUANTISATION, metavar="FOLDER"),
    ] = None
    target: Annotated[str, Shown(help="What the files are for.", panel=QUANTISATION, metavar="NAME|FILE")] = (
        "ort-cpu"
    )
    edge_bits: Annotated[
        int, Shown(help="Bits of the first and the last layer.", panel=QUANTISATION, metavar="N")
    ] = Field(default=8, ge=2, le=8)
    edge_convention: Annotated[
        EdgeConvention, Shown(help="What has these bits, as in build.", panel=QUANTISATION)
    ] = DEFAULT_EDGE_CONVENTION
    calib: Annotated[str, Shown(help="Calibration images, as in build.", panel=IMAGES, metavar="METHOD")] = (
        "mixup"
    )
    images: Annotated[int, Shown(help="Calibration images.", panel=IMAGES, metavar="N")] = Field(
        default=512, ge=1
    )
    seed: Annotated[int, Shown(help="Seed of everything random.", panel=IMAGES, metavar="S")] = Field(
        default=0, ge=0
    )
    eval: Annotated[
        Path | None,
        Shown(help="Labelled images, as in build.", panel=FILES, metavar="DIR|FILE.npz"),
    ] = None
    out: Annotated[
        Path | None,
        Shown(
            help="Folder of table, plot and bundles.", panel=FILES, metavar="DIR", default="dist/MODEL-sweep"
        ),
    ] = None
    cache: Annotated[
        Path,
        Shown(help="Folder of calibration images and stage results.", panel=FILES, metavar="DIR"),
    ] = Path("calib_cache")

    @field_validator("schemes", "iters", mode="before")
    @classmethod
    def _read_list(cls, value: object) -> object:
        if isinstance(value, (str, int)):
            value = (value,)
        if not isinstance(value, (list, tuple)):
            return value
        words = [one.split(",") if isinstance(one, str) else [one] for one in cast("Sequence[object]", value)]
        parts = [one.strip() if isinstance(one, str) else one for word in words for one in word]
        return tuple(one for one in parts if one != "")

    @classmethod
    def of(cls, values: Mapping[str, object]) -> Self:
        """Check values and fill defaults. Raises BadOptionError."""
        options = read_options(cls, values, command="sweep")
        if not options.schemes or not options.iters:
            raise BadOptionError("--schemes and --iters name at least one each", hint="mixport sweep --help")
        if any(steps < 0 for steps in options.iters):
            raise BadOptionError(
                f"--iters is {options.iters}, allowed 0 and more", hint="mixport sweep --help"
            )
        return options
