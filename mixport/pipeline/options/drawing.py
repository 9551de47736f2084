"""Options of drawn calibration images: how prompts are made, which generator draws, which images are kept."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from mixport.calibration.prompts.phrases import check_template
from mixport.calibration.recipe import (
    FilterSettings,
    GeneratorSettings,
    LabelText,
    Pairing,
)
from mixport.pipeline.options.calibration import PromptsAsked, drawn_method
from mixport.pipeline.options.shown import FILTERS, GENERATOR, PROMPTS, Shown
from mixport.pipeline.options.spelling import check_size, flag, read_size
from mixport.records.errors import BadOptionError

#: Options of a generator that comes from a hub.
_HUB_ONLY = ("gen_revision",)
#: Whole batches are drawn and kept: a larger one would draw thousands of images for a set of ten.
_MOST_AT_ONCE = 4096


class DrawOptions(BaseModel):
    """Options that only the methods which draw images take, under the names they have on the command line."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    classes_per_prompt: Annotated[
        int | None,
        Shown(
            help="Class names fused in one prompt of mixup, 2 to 4.",
            panel=PROMPTS,
            metavar="K",
            default="3 with the builtin generator, 2 with others",
        ),
    ] = Field(default=None, ge=1)
    template: Annotated[
        str | None,
        Shown(
            help="The prompt, with {classes} where the names go.",
            panel=PROMPTS,
            metavar="TEXT",
            default="A photo of {classes}",
        ),
    ] = Field(default=None, min_length=1)
    pairing: Annotated[
        Pairing,
        Shown(
            help=(
                "How classes meet in a prompt of mixup: each equally often, by chance, or "
                "far apart in meaning."
            ),
            panel=PROMPTS,
        ),
    ] = "balanced"
    label_text: Annotated[
        LabelText,
        Shown(
            help=("The class name alone, or with its meaning, for names that mean several things."),
            panel=PROMPTS,
        ),
    ] = "name"
    generator: Annotated[
        str,
        Shown(
            help=(
                "builtin, which knows the ten CIFAR-10 classes at 32x32 pixels and is "
                "refused for other models unless it is typed out; or a diffusers "
                "text-to-image pipeline: a folder or a hub id."
            ),
            panel=GENERATOR,
            metavar="ID",
        ),
    ] = Field(default="builtin", min_length=1)
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        Shown(
            help=("Where the generator draws and reconstruction learns. Everything else runs on the CPU."),
            panel=GENERATOR,
        ),
    ] = "auto"
    gen_revision: Annotated[
        str | None,
        Shown(
            help="Branch, tag or commit of a hub id.",
            panel=GENERATOR,
            metavar="REV",
            default="the newest",
        ),
    ] = Field(default=None, min_length=1)
    gen_scheduler: Annotated[
        str | None,
        Shown(
            help="Scheduler class of diffusers.",
            panel=GENERATOR,
            metavar="CLASS",
            default="the generator's own",
        ),
    ] = Field(default=None, min_length=1)
    gen_steps: Annotated[
        int | None,
        Shown(
            help="Denoising steps.",
            panel=GENERATOR,
            metavar="N",
            default="the generator's own",
        ),
    ] = Field(default=None, ge=1, le=1000)
    gen_guidance: Annotated[
        float | None,
        Shown(
            help="Classifier-free guidance scale; 1 or less turns it off.",
            panel=GENERATOR,
            metavar="SCALE",
            default="the generator's own",
        ),
    ] = Field(default=None, ge=0.0, allow_inf_nan=False)
    gen_negative: Annotated[
        str,
        Shown(
            help="What to stay away from.",
            panel=GENERATOR,
            metavar="TEXT",
            default="nothing",
        ),
    ] = ""
    gen_size: Annotated[
        tuple[int, int] | None,
        Shown(
            help=("Size that the generator draws; images are then brought to the model's input size."),
            panel=GENERATOR,
            metavar="HxW",
            default="the generator's own",
        ),
    ] = None
    gen_dtype: Annotated[
        Literal["auto", "float32", "float16", "bfloat16"],
        Shown(
            help="Of the generator's weights. auto: float32 on a CPU, float16 on a GPU.",
            panel=GENERATOR,
        ),
    ] = "auto"
    gen_batch: Annotated[
        int | None,
        Shown(
            help="Images drawn at once.",
            panel=GENERATOR,
            metavar="N",
            default="by device and size",
        ),
    ] = Field(default=None, ge=1, le=_MOST_AT_ONCE)
    gen_safety_checker: Annotated[
        bool,
        Shown(
            help="The generator's own checker, which blackens images it objects to.",
            panel=GENERATOR,
            default="off",
            both=True,
        ),
    ] = False
    keep_energy: Annotated[
        float,
        Shown(
            help=("Keep this share of the drawn images: those the float model knows best (lowest energy)."),
            panel=FILTERS,
            metavar="SHARE",
        ),
    ] = Field(default=1.0, gt=0.0, le=1.0)
    keep_statistics: Annotated[
        float,
        Shown(
            help=(
                "Keep this share: those that fit BatchNorm statistics best (CNN), or have "
                "the most varied patches (ViT)."
            ),
            panel=FILTERS,
            metavar="SHARE",
        ),
    ] = Field(default=1.0, gt=0.0, le=1.0)

    @field_validator("gen_size", mode="before")
    @classmethod
    def _read_gen_size(cls, value: object) -> object:
        return read_size(value)

    @field_validator("gen_size")
    @classmethod
    def _check_gen_size(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        return check_size(value)

    def check_drawing(self, calib: str) -> None:
        """Refuse options of drawing that this `--calib` does not use, and those that contradict each other.

        Raises:
            BadOptionError: naming the option.
        """
        method = drawn_method(calib)
        if method is None:
            self._refuse_without_drawing(calib)
            return
        if method != "mixup":
            self._refuse_without_mixup(method)
        if self.template is not None:
            check_template(self.template)
        for name in _HUB_ONLY:
            if self.generator == "builtin" and getattr(self, name) is not None:
                raise BadOptionError(
                    f"{flag(name)} has no effect with --generator builtin, which has one version only",
                    hint=f"--generator with a hub id, or leave {flag(name)} out",
                )
        if self.gen_negative and self.gen_guidance is not None and self.gen_guidance <= 1.0:
            raise BadOptionError(
                (
                    f"--gen-negative has no effect with --gen-guidance {self.gen_guidance:g}, which "
                    "turns guidance off"
                ),
                hint="a --gen-guidance above 1, or leave --gen-negative out",
            )

    def generator_settings(self) -> GeneratorSettings:
        """What these options say of the generator."""
        return GeneratorSettings(
            source=self.generator,
            revision=self.gen_revision,
            scheduler=self.gen_scheduler,
            steps=self.gen_steps,
            guidance=self.gen_guidance,
            negative_prompt=self.gen_negative,
            size=self.gen_size,
            dtype=self.gen_dtype,
            safety_checker=self.gen_safety_checker,
            batch=self.gen_batch,
            device=self.device,
        )

    def filter_settings(self) -> FilterSettings:
        """What these options say of the filters."""
        return FilterSettings(keep_energy=self.keep_energy, keep_statistics=self.keep_statistics)

    def prompts_asked(self) -> PromptsAsked:
        """What these options say of prompts."""
        return PromptsAsked(
            classes_per_prompt=self.classes_per_prompt,
            template=self.template,
            pairing=self.pairing,
            label_text=self.label_text,
        )

    def _refuse_without_mixup(self, method: str) -> None:
        values = {
            "classes_per_prompt": self.classes_per_prompt not in (None, 1),
            "pairing": self.pairing != "balanced",
        }
        for name in (name for name, typed in values.items() if typed):
            raise BadOptionError(
                (
                    f"{flag(name)} {getattr(self, name)} has no effect with --calib {method}, which puts "
                    "one class in a prompt"
                ),
                hint=f"--calib mixup, or leave {flag(name)} out",
            )

    def _refuse_without_drawing(self, calib: str) -> None:
        for name, field in DrawOptions.model_fields.items():
            value = getattr(self, name)
            if (
                value == field.default or name == "device"
            ):  # reconstruction uses the device too: BuildOptions looks at both
                continue
            raise BadOptionError(
                f"{flag(name)} has no effect with --calib {calib}, which draws no images",
                hint=f"--calib mixup, or leave {flag(name)} out",
            )
