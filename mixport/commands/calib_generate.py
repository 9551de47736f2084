"""mixport calib generate: the calibration images of a build, and no more."""

from __future__ import annotations

import typer

from mixport.commands.calibration_flags import (
    CacheFolderOption,
    CalibOption,
    ClassesPerPromptOption,
    DeviceOption,
    GenBatchOption,
    GenDtypeOption,
    GeneratorOption,
    GenGuidanceOption,
    GenNegativeOption,
    GenRevisionOption,
    GenSafetyCheckerOption,
    GenSchedulerOption,
    GenSizeOption,
    GenStepsOption,
    ImagesOption,
    KeepEnergyOption,
    KeepStatisticsOption,
    LabelTextOption,
    PairingOption,
    SeedOption,
    TemplateOption,
)
from mixport.commands.flags import ConfigOption, JsonFlag, QuietFlag, typed
from mixport.commands.model_flags import (
    ClassesOption,
    CropOption,
    InputSizeOption,
    MeanOption,
    ModelArgOption,
    ModelArgument,
    RandomWeightsOption,
    StdOption,
    WeightsOption,
)
from mixport.console import Console


def generate(
    context: typer.Context,
    model: ModelArgument = None,
    weights: WeightsOption = None,
    random_weights: RandomWeightsOption = None,
    model_arg: ModelArgOption = None,
    classes: ClassesOption = None,
    input_size: InputSizeOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    crop: CropOption = None,
    calib: CalibOption = None,
    images: ImagesOption = None,
    seed: SeedOption = None,
    cache: CacheFolderOption = None,
    classes_per_prompt: ClassesPerPromptOption = None,
    template: TemplateOption = None,
    pairing: PairingOption = None,
    label_text: LabelTextOption = None,
    generator: GeneratorOption = None,
    device: DeviceOption = None,
    gen_revision: GenRevisionOption = None,
    gen_scheduler: GenSchedulerOption = None,
    gen_steps: GenStepsOption = None,
    gen_guidance: GenGuidanceOption = None,
    gen_negative: GenNegativeOption = None,
    gen_size: GenSizeOption = None,
    gen_dtype: GenDtypeOption = None,
    gen_batch: GenBatchOption = None,
    gen_safety_checker: GenSafetyCheckerOption = None,
    keep_energy: KeepEnergyOption = None,
    keep_statistics: KeepStatisticsOption = None,
    config: ConfigOption = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Make calibration images as a build with the same options would, and stop there."""
    console = Console(json=json, quiet=quiet)

    from mixport.config import merge, read_config

    options = merge(read_config(config), typed(context))

    # After the options, so that a mistake in them is answered at once: the pipeline imports torch.
    from mixport.pipeline import calibrate_only

    made = calibrate_only(options, progress=console, note=console.note)
    facts = {
        "key": made.recipe_key,
        "method": made.method,
        "images": made.count,
        "content_sha256": made.content_sha256,
        "path": str(made.images_path),
    }
    if json:
        console.document(facts)
        return
    console.table(["", ""], [[name, value] for name, value in facts.items()])
