"""What a build is about to do, told before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mixport.calibration.preview import Preview
from mixport.calibration.recipe import CalibrationRecipe, GeneratorSettings, PromptRecipe
from mixport.model.request import ModelRequest
from mixport.pipeline.options.spelling import flag
from mixport.records.choices.algorithms import NEAREST

if TYPE_CHECKING:
    from mixport.model.float_model import FloatModel
    from mixport.pipeline.build_plan import BuildPlan


@dataclass(frozen=True, kw_only=True)
class Announcement:
    """Lines of the plan, in order, each under a short name; a line without a name goes on with the one
    above.
    """

    lines: tuple[tuple[str, str], ...]

    def text(self) -> str:
        """One block for people."""
        width = max(len(name) for name, _ in self.lines)
        return "\n".join(["plan", *(f"  {name:<{width}}  {value}" for name, value in self.lines)])


def announce(
    plan: BuildPlan,
    *,
    model: FloatModel,
    recipe: CalibrationRecipe,
    preview: Preview,
    labelled: int | None,
    folders: Sequence[Path],
) -> Announcement:
    """What a build is about to do.

    Args:
        plan: of the build.
        model: loaded.
        recipe: of the calibration images.
        preview: of these images.
        labelled: number of labelled images; None without them.
        folders: of the bundles, in the order of the plan's targets.
    """
    scheme = plan.scheme
    return Announcement(
        lines=(
            ("model", _model_text(plan.model, model)),
            *_preprocessing_lines(model),
            (
                "scheme",
                (
                    f"{scheme.name}, first and last layer {scheme.edge_bits} bits "
                    f"({scheme.edge_convention}), seed {plan.seed}"
                ),
            ),
            ("rounding", _rounding_text(plan)),
            (
                "target",
                ", ".join(
                    target.name if target.portable else f"{target.name}, not portable"
                    for target in plan.targets
                ),
            ),
            ("calibration", _calibration_text(recipe, preview)),
            *(("", line) for line in _drawing_lines(recipe, preview)),
            *_cache_lines(preview, plan.cache),
            ("compare", _compare_text(plan, model, preview, labelled)),
            ("gates", ", ".join(gate.text for gate in plan.gates) or "none"),
            ("bundle", ", ".join(str(folder) for folder in folders)),
        )
    )


def _model_text(request: ModelRequest, model: FloatModel) -> str:
    weights = (
        "random weights"
        if request.random_weights
        else str(request.weights)
        if request.weights is not None
        else "its own weights"
    )
    classes = f"{len(model.class_names)} class names" if model.class_names is not None else "no class names"
    return f"{model.source} ({weights}), {classes}"


def _rounding_text(plan: BuildPlan) -> str:
    learned = plan.reconstruction
    if plan.integers is not None:
        return f"integers of {plan.integers.folder}, trained by {plan.integers.record.method}"
    if learned is None:
        if plan.algorithm.name != NEAREST:
            return plan.algorithm.title
        return (
            "to nearest: 8-bit weights and activations are not learned" if plan.steps_asked else "to nearest"
        )
    steps = "1 step" if learned.iters == 1 else f"{learned.iters} steps"
    text = f"learned unit by unit, {steps} each ({plan.algorithm.name}), device {learned.device}"
    return f"{text}; MLPs with ReLU for GELU before" if learned.preset.mlp_reconstruction else text


def _preprocessing_lines(model: FloatModel) -> list[tuple[str, str]]:
    found = model.preprocessing
    height, width = found.size
    values = {
        "input_size": f"{height}x{width} pixels",
        "mean": f"mean {' '.join(f'{value:g}' for value in found.mean)}",
        "std": f"std {' '.join(f'{value:g}' for value in found.std)}",
    }
    text = ", ".join(
        f"{value}{' (assumed)' if name in model.assumed else ''}" for name, value in values.items()
    )
    lines = [("input", text)]
    if model.assumed:
        lines.append(("", f"the model does not state what is assumed: {', '.join(map(flag, model.assumed))}"))
    return lines


def _calibration_text(recipe: CalibrationRecipe, preview: Preview) -> str:
    if recipe.source is not None:
        fewer = f" ({recipe.images} were asked for)" if preview.images < recipe.images else ""
        return f"{preview.images} real images from {recipe.source}{fewer}"
    if recipe.prompts is None:
        return f"{recipe.images} images of {recipe.method}"
    return f"{recipe.images} drawn images, prompts: {prompts_text(recipe.prompts)}"


def prompts_text(prompts: PromptRecipe) -> str:
    """A prompt recipe in a few words."""
    words = {"single": "one class each", "genq": "an adjective and a class each"}
    made = words.get(
        prompts.strategy,
        f"{prompts.classes_per_prompt} of {len(prompts.class_names)} classes each, {prompts.pairing}",
    )
    gloss = ", with meanings" if prompts.label_text == "gloss" else ""
    template = f", template {prompts.template!r}" if prompts.template is not None else ""
    return f"{prompts.strategy}, {made}{gloss}{template}"


def generator_text(generator: GeneratorSettings) -> str:
    """Generator settings in a few words; what is not said is the generator's own."""
    said = {
        "revision": generator.revision,
        "scheduler": generator.scheduler,
        "steps": generator.steps,
        "guidance": generator.guidance,
        "negative prompt": generator.negative_prompt or None,
        "size": "x".join(map(str, generator.size)) if generator.size is not None else None,
        "dtype": None if generator.dtype == "auto" else generator.dtype,
        "batch": generator.batch,
    }
    settings = [f"{name} {value}" for name, value in said.items() if value is not None]
    checker = ["safety checker on"] if generator.safety_checker else []
    return ", ".join([generator.source, f"device {generator.device}", *settings, *checker])


def _drawing_lines(recipe: CalibrationRecipe, preview: Preview) -> list[str]:
    if preview.generator is None:
        return []
    lines = [f"generator: {generator_text(preview.generator)}"]
    shares = {"energy": recipe.filters.keep_energy, "statistics": recipe.filters.keep_statistics}
    kept = [f"the best {share:.0%} by {name}" for name, share in shares.items() if share < 1.0]
    if kept:
        lines.append(f"filters: of {preview.pool} drawn images, keep {', then '.join(kept)}")
    return [*lines, *_drawing_ahead(preview)]


def _drawing_ahead(preview: Preview) -> list[str]:
    """How much will be drawn: more than was asked for, where that is no multiple of the batch."""
    if preview.batch is None:
        return [f"{preview.pool} or more will be drawn, in whole batches"]
    if preview.to_draw is None:
        most = -(-preview.pool // preview.batch) * preview.batch
        return [f"{most} will be drawn, in whole batches of {preview.batch}, less what is in the cache"]
    return (
        [f"{preview.to_draw} will be drawn, in whole batches of {preview.batch}"] if preview.to_draw else []
    )


def _cache_lines(preview: Preview, cache: Path) -> list[tuple[str, str]]:
    if preview.cached is None:
        return []
    if preview.cached >= preview.images:
        return [("", f"all of them are in {cache} already")]
    return [
        (
            "",
            f"{preview.cached} of them are in {cache} already"
            if preview.cached
            else f"none of them is in {cache} yet",
        )
    ]


def _compare_text(plan: BuildPlan, model: FloatModel, preview: Preview, labelled: int | None) -> str:
    asked = plan.validation_count(model.preprocessing.size)
    at_hand = labelled if labelled is not None else preview.images
    source = f"labelled images of {plan.labelled}" if labelled is not None else "calibration images"
    codes = f"every code on {min(asked, at_hand)} {source} ({', '.join(plan.runtime_names)})"
    return (
        f"{codes}; top-1 on {labelled} images"
        if labelled is not None
        else f"{codes}; no top-1 without --eval"
    )
