"""Options of drawn calibration images: how prompts are made, which generator draws, which images are kept."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from mixport.calibration.prompts.phrases import check_template
from mixport.calibration.recipe import (
    FilterSettings,
    GeneratorSettings,
    LabelText,
    Pairing,
)
from mixport.pipeline.options.calibration import PromptsAsked, drawn_method
from mixport.pipeline.options.spelling import check_size, flag, read_size
from mixport.records.errors import BadOptionError

#: Options of a generator that comes from a hub.
_HUB_ONLY = ("gen_revision",)
#: Whole batches are drawn and kept: a larger one would draw thousands of images for a set of ten.
_MOST_AT_ONCE = 4096


class DrawOptions(BaseModel):
    """Options that only the methods which draw images take, under the names they have on the command line.

    Attributes:
        classes_per_prompt: class names fused in one prompt of mixup; None is the generator's own, or all
            there are.
        template: text with `{classes}`; None is the method's own.
        pairing: how classes meet in a prompt of mixup.
        label_text: the class name alone, or with its meaning.
        generator: builtin, a folder in diffusers format, or a hub id.
        gen_revision: branch, tag or commit of a hub id.
        gen_scheduler: class name in diffusers; None keeps the generator's own.
        gen_steps: denoising steps; None is the generator's own.
        gen_guidance: classifier-free guidance scale; None is the generator's own.
        gen_negative: what the generator stays away from.
        gen_size: (height, width) that the generator draws, in pixels; None is its own.
        gen_dtype: of the generator's weights while it draws.
        gen_batch: images drawn at once; None chooses by device and size.
        gen_safety_checker: keep the generator's safety checker.
        device: where the generator runs and reconstruction learns; everything else runs on the CPU.
        keep_energy: share of the drawn images with the lowest energy under the float model.
        keep_statistics: share of the drawn images that fit the float model's statistics best.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    classes_per_prompt: int | None = Field(default=None, ge=1)
    template: str | None = Field(default=None, min_length=1)
    pairing: Pairing = "balanced"
    label_text: LabelText = "name"
    generator: str = Field(default="builtin", min_length=1)
    gen_revision: str | None = Field(default=None, min_length=1)
    gen_scheduler: str | None = Field(default=None, min_length=1)
    gen_steps: int | None = Field(default=None, ge=1, le=1000)
    gen_guidance: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    gen_negative: str = ""
    gen_size: tuple[int, int] | None = None
    gen_dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    gen_batch: int | None = Field(default=None, ge=1, le=_MOST_AT_ONCE)
    gen_safety_checker: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    keep_energy: float = Field(default=1.0, gt=0.0, le=1.0)
    keep_statistics: float = Field(default=1.0, gt=0.0, le=1.0)

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
