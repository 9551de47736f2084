"""Options of a build: one frozen record, whether they come from the command line, from mixport.toml or from
Python.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from mixport.calibration.recipe import PromptRecipe, parse_calibration
from mixport.pipeline.options.calibration import CalibrationAsked, drawn_method
from mixport.pipeline.options.checked import read_options
from mixport.pipeline.options.drawing import DrawOptions
from mixport.pipeline.options.model_options import ModelOptions
from mixport.pipeline.options.shown import FILES, IMAGES, PROOF, QUANTISATION, Shown
from mixport.pipeline.options.spelling import spell
from mixport.records.calibration_set import Preprocessing
from mixport.records.choices.algorithms import (
    ALGORITHMS,
    DEFAULT_ALGORITHM,
    NEAREST,
    Algorithm,
    find_algorithm,
)
from mixport.records.choices.reconstruction_preset import WIDEST_LEARNED
from mixport.records.choices.scheme import DEFAULT_EDGE_CONVENTION, EdgeConvention, Scheme
from mixport.records.errors import BadOptionError
from mixport.release.evaluate import GATE_METRICS, Gate, parse_gate

_ITERS = ((3, 2000), (7, 500), (8, 0))
"""Widest weights, reconstruction steps a unit: what is lost by rounding to nearest decides."""


class BuildOptions(ModelOptions):
    """Every option of `mixport build`, under the name it has on the command line; those of drawing are the
    base's.
    """

    scheme: Annotated[
        str,
        Shown(
            help=(
                "Weight and activation bits, 2 to 8. auto:SIZE[:aA]: mixed weight bits in a"
                " model.onnx of at most SIZE, a ratio of the float parameters (auto:0.10) "
                "or a size (auto:80KB is 80,000 bytes, auto:80KiB 81,920); A is 8."
            ),
            panel=QUANTISATION,
            metavar="wWaA|auto:SIZE",
        ),
    ] = "w4a8"
    edge_bits: Annotated[
        int,
        Shown(
            help="Bits of the first and the last layer.",
            panel=QUANTISATION,
            metavar="N",
        ),
    ] = Field(default=8, ge=2, le=8)
    edge_convention: Annotated[
        EdgeConvention,
        Shown(
            help=(
                "What has these bits: weights of both, what the last one reads, and what "
                "the first one gives (brecq) or not (qdrop); or only what the first one "
                "reads (vit)."
            ),
            panel=QUANTISATION,
        ),
    ] = DEFAULT_EDGE_CONVENTION
    target: Annotated[
        tuple[str, ...],
        Shown(
            help="Repeatable: one bundle each, in OUT/NAME.",
            panel=QUANTISATION,
            metavar="NAME|FILE",
        ),
    ] = ("ort-cpu",)
    portable: Annotated[
        bool,
        Shown(
            help=(
                "Only forms that give the same codes on every runtime, or the runtime's own"
                " softmax, LayerNorm and adds."
            ),
            panel=QUANTISATION,
            default="portable",
            both=True,
        ),
    ] = True
    calib: Annotated[
        str,
        Shown(
            help=(
                "mixup, single or genq draw images from prompts; images:DIR or "
                "images:FILE.npz takes real ones; noise needs nothing."
            ),
            panel=IMAGES,
            metavar="METHOD",
        ),
    ] = "mixup"
    images: Annotated[
        int,
        Shown(
            help="Calibration images.",
            panel=IMAGES,
            metavar="N",
        ),
    ] = Field(default=512, ge=1)
    seed: Annotated[
        int,
        Shown(
            help="Seed of everything random.",
            panel=IMAGES,
            metavar="S",
        ),
    ] = Field(default=0, ge=0)
    iters: Annotated[
        int | None,
        Shown(
            help=("Reconstruction steps per unit; 0 rounds to nearest. 8-bit codes are never learned."),
            panel=QUANTISATION,
            metavar="N",
            default="0 for 8-bit weights, 500 for 4 to 7, 2000 below",
        ),
    ] = Field(default=None, ge=0)
    reconstruction: Annotated[
        str,
        Shown(
            help=f"How integers are chosen: {', '.join(ALGORITHMS)}.",
            panel=QUANTISATION,
            metavar="NAME",
        ),
    ] = DEFAULT_ALGORITHM
    trained: Annotated[
        Path | None,
        Shown(
            help=(
                "Export what mixport train chose: of nipq its integers (with --iters N its widths, and "
                "codes reconstructed anew), of other methods its weights."
            ),
            panel=QUANTISATION,
            metavar="FOLDER",
        ),
    ] = None
    sites: Annotated[
        Path | None,
        Shown(
            help=(
                "Widths of single layers and sites that differ from the scheme's: a training's "
                "sites.json, or your own."
            ),
            panel=QUANTISATION,
            metavar="FILE.json",
        ),
    ] = None
    mlp_reconstruction: Annotated[
        bool | None,
        Shown(
            help="First learn the MLPs of transformers with ReLU in the place of GELU.",
            panel=QUANTISATION,
            default="as the recipe says",
            both=True,
        ),
    ] = None
    eval: Annotated[
        Path | None,
        Shown(
            help=("Labelled images: npz with images uint8 NHWC and labels int64, or one folder per class."),
            panel=PROOF,
            metavar="DIR|FILE.npz",
        ),
    ] = None
    validation_images: Annotated[
        int | None,
        Shown(
            help="Images compared code by code, from --eval or else from calibration.",
            panel=PROOF,
            metavar="N",
            default="256 up to 64x64 pixels, else 32",
        ),
    ] = Field(default=None, ge=1)
    gate: Annotated[
        tuple[str, ...],
        Shown(
            help=("Repeatable: fail unless it holds, e.g. top1_drop<=1.0, size_ratio<=0.2, agreement>=0.98."),
            panel=PROOF,
            metavar="EXPR",
        ),
    ] = ("mismatches==0",)
    runtime: Annotated[
        tuple[str, ...],
        Shown(
            help="Repeatable: runtimes that must agree.",
            panel=PROOF,
            metavar="NAME",
        ),
    ] = ("native",)
    out: Annotated[
        Path | None,
        Shown(
            help="Bundle folder.",
            panel=FILES,
            metavar="DIR",
            default="dist/MODEL-SCHEME-TARGET",
        ),
    ] = None
    cache: Annotated[
        Path,
        Shown(
            help="Folder of calibration images and stage results.",
            panel=IMAGES,
            metavar="DIR",
        ),
    ] = Path("calib_cache")

    @field_validator("target", "gate", "runtime", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @classmethod
    def of(cls, values: Mapping[str, object]) -> BuildOptions:
        """Check values and fill defaults. Raises BadOptionError that names the option, what it got and what
        is allowed.
        """
        options = read_options(cls, values, command="build")
        options.check()
        return options

    def check(self) -> None:
        """Refuse, before any work, what contradicts itself or is not part of this version.

        Raises:
            BadOptionError: a value that is not allowed.
            BadInputError: an unknown runtime, or one whose host or command line has a wrong form.
        """
        self.parse_scheme()
        if self.random_weights and self.weights is not None:
            raise BadOptionError(
                "--random-weights and --weights contradict each other", hint="leave one of them out"
            )
        self._check_reconstruction()
        if not self.runtime:
            raise BadOptionError("--runtime names no runtime", hint="mixport runtimes list")
        # It reads protocols with numpy, which help must not wait for.
        from mixport.validate import runtimes

        runtimes.check_names(self.runtime)
        if not self.target:
            raise BadOptionError("--target names no target", hint="mixport targets list")
        self._check_calib()

    def calibration_asked(self) -> CalibrationAsked:
        """The calibration images that these options ask for."""
        return CalibrationAsked(
            method=self.calib,
            images=self.images,
            seed=self.seed,
            prompts=self.prompts_asked(),
            generator=self.generator_settings(),
            generator_given=self.given("generator"),
            filters=self.filter_settings(),
        )

    def given(self, option: str) -> bool:
        """Whether an option was typed, be it with the value that is its default."""
        return option in self.model_fields_set

    def parse_gates(self) -> list[Gate]:
        """The gates of a build.

        Raises:
            BadOptionError: a gate that cannot be read, or whose metric needs images that no option gives.
        """
        gates = [parse_gate(text) for text in self.gate]
        for gate in gates:
            if GATE_METRICS[gate.metric][1] == "--eval" and self.eval is None:
                raise BadOptionError(
                    f"--gate '{gate.text}' needs labelled images, and --eval is not given",
                    hint=f"mixport build --eval DIR --gate '{gate.text}' ...",
                )
        return gates

    def parse_scheme(self) -> Scheme:
        """Bit widths of the build. Raises BadOptionError."""
        return Scheme.parse(self.scheme, edge_bits=self.edge_bits, edge_convention=self.edge_convention)

    def resolve_algorithm(self) -> tuple[Algorithm, int]:
        """How integers are chosen, and with how many steps a unit: as asked for, else by the width of the
        weights. Rounding to nearest where nothing is learned: 0 steps, or 8 bits for every code. Raises
        BadOptionError.
        """
        algorithm = find_algorithm(self.reconstruction)
        if algorithm.preset is None:
            return algorithm, 0
        scheme = self.parse_scheme()
        if min(scheme.weight_bits, scheme.activation_bits, scheme.edge_bits) > WIDEST_LEARNED:
            return ALGORITHMS[NEAREST], 0
        iters = self.iters
        if iters is None:
            iters = next(steps for widest, steps in _ITERS if scheme.weight_bits <= widest)
        return (algorithm, iters) if iters else (ALGORITHMS[NEAREST], 0)

    def _check_reconstruction(self) -> None:
        """The recipe exists, and neither it, nor MLPs, nor the device is named where nothing is learned."""
        algorithm, _ = self.resolve_algorithm()
        if algorithm.preset is not None:
            return
        if algorithm.name == self.reconstruction:
            nearest = f"with --reconstruction {algorithm.name}"
            if self.iters:
                raise BadOptionError(
                    f"--iters {self.iters} has no effect {nearest}", hint="leave one of them out"
                )
        else:
            nearest = (
                "with --iters 0"
                if self.iters == 0
                else f"with --scheme {self.scheme}, whose weights are rounded to nearest"
            )
        if self.reconstruction not in {DEFAULT_ALGORITHM, algorithm.name}:
            raise BadOptionError(
                f"--reconstruction {self.reconstruction} has no effect {nearest}",
                hint="--iters N, or leave --reconstruction out",
            )
        if self.mlp_reconstruction:
            raise BadOptionError(
                f"--mlp-reconstruction has no effect {nearest}",
                hint="--iters N, or leave --mlp-reconstruction out",
            )
        if self.device == "cuda" and drawn_method(self.calib) is None:
            raise BadOptionError(
                f"--device cuda has no effect {nearest} and --calib {self.calib}, which draws no images",
                hint="leave --device out",
            )

    def _check_calib(self) -> None:
        """What can be told before the model is loaded: a method that does not exist, numbers out of range,
        options without effect.
        """
        method = drawn_method(self.calib)
        unknown = Preprocessing(size=(1, 1), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        prompts = PromptRecipe(strategy=method, class_names=()) if method is not None else None
        parse_calibration(
            self.calib, images=self.images, seed=self.seed, preprocessing=unknown, prompts=prompts
        )
        self.check_drawing(self.calib)


def command_line(options: BuildOptions) -> str:
    """The command that repeats this build: every option that differs from its default, in a shell's
    spelling.
    """
    return spell_command("build", options)


def spell_command(command: str, options: ModelOptions) -> str:
    """The command line of these options: every one that differs from its default, in a shell's spelling."""
    words, fields = ["mixport", command, options.model], type(options).model_fields
    own = [name for name in fields if name not in DrawOptions.model_fields and name != "model"]
    for name in (*own, *DrawOptions.model_fields):
        value = getattr(options, name)
        typed = name in options.model_fields_set
        means_more = name == "generator" and typed  # typed out it is taken for every model
        if means_more or value != fields[name].get_default(call_default_factory=True):
            words += spell(name, value)
    return shlex.join(words)
