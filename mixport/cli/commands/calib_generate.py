"""mixport calib generate: the calibration images of a build, and no more."""

from __future__ import annotations

import typer

from mixport.cli.console import Console
from mixport.cli.options.calibration import (
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
from mixport.cli.options.model import (
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
from mixport.cli.options.shared import ConfigOption, JsonFlag, QuietFlag, typed


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

    from mixport.pipeline.options.config_file import merge, read_config

    options = merge(read_config(config), typed(context))

    # After the options, so that a mistake in them is answered at once: the pipeline imports torch.
    from mixport.pipeline.build_bundle import calibrate_only

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
