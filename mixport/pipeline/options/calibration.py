"""What is asked of the calibration images; a model's preprocessing and class names make it a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mixport.calibration.generator.resolve import check_suits, known_defaults
from mixport.calibration.recipe import (
    DRAWN,
    CalibrationRecipe,
    FilterSettings,
    GeneratorSettings,
    LabelText,
    Pairing,
    PromptRecipe,
    Strategy,
    parse_calibration,
)
from mixport.records.calibration_set import Preprocessing
from mixport.records.errors import BadOptionError

#: A prompt of one class is no mixup.
_FEWEST_PER_PROMPT = 2


@dataclass(frozen=True, kw_only=True)
class PromptsAsked:
    """Options of prompts; see `mixport.pipeline.options.drawing.DrawOptions`."""

    classes_per_prompt: int | None
    template: str | None
    pairing: Pairing
    label_text: LabelText


@dataclass(frozen=True, kw_only=True)
class CalibrationAsked:
    """Everything about the calibration images but the model they are for.

    Attributes:
        method: mixup, single, genq, images:DIR, images:FILE.npz or noise.
        images: how many.
        seed: of prompts and noise.
        prompts: of methods that draw.
        generator: of methods that draw.
        generator_given: it was typed out, and is taken for every model.
        filters: of drawn images.
    """

    method: str
    images: int
    seed: int
    prompts: PromptsAsked
    generator: GeneratorSettings
    generator_given: bool
    filters: FilterSettings

    def recipe(
        self,
        *,
        preprocessing: Preprocessing,
        class_names: Sequence[str] | None,
        glosses: Sequence[str] | None = None,
    ) -> CalibrationRecipe:
        """The calibration images for a model with this preprocessing and these classes.

        Raises:
            BadOptionError: the method needs class names or meanings, and there are none; or the generator
                cannot draw for such a model.
        """
        strategy = drawn_method(self.method)
        prompts = None
        if strategy is not None and not self.generator_given:
            check_suits(
                self.generator.source, class_names=class_names, size=preprocessing.size, method=strategy
            )
        if strategy is not None and class_names is not None:
            prompts = self._prompts(strategy, class_names=class_names, glosses=glosses)
        return parse_calibration(
            self.method,
            images=self.images,
            seed=self.seed,
            preprocessing=preprocessing,
            prompts=prompts,
            generator=self.generator,
            filters=self.filters,
        )

    def _prompts(
        self, strategy: Strategy, *, class_names: Sequence[str], glosses: Sequence[str] | None
    ) -> PromptRecipe:
        asked = self.prompts
        if asked.label_text == "gloss" and glosses is None:
            raise BadOptionError(
                "--label-text gloss needs the meaning of every class, which this model does not bring",
                hint='--classes FILE.json with [{"name": "crane", "gloss": "a large wading bird"}, ...]',
            )
        fused = asked.classes_per_prompt
        if fused is None:
            known = known_defaults(self.generator.source).classes_per_prompt
            fused = min(known, max(len(class_names), _FEWEST_PER_PROMPT))
        return PromptRecipe(
            strategy=strategy,
            class_names=tuple(class_names),
            # Meanings that no prompt shows must not change the key of the recipe.
            glosses=tuple(glosses) if glosses is not None and asked.label_text == "gloss" else None,
            classes_per_prompt=fused if strategy == "mixup" else 1,
            template=asked.template,
            pairing=asked.pairing,
            label_text=asked.label_text,
            seed=self.seed,
        )


def drawn_method(calib: str) -> Strategy | None:
    """The prompt strategy that `--calib` names; None where it draws no images."""
    return next((method for method in DRAWN if method == calib.strip()), None)
