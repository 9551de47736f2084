"""mixport build: the main job."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from mixport.records.algorithms import ALGORITHMS
from mixport.records.errors import ExitCode

if TYPE_CHECKING:
    from mixport.pipeline.announcement import Announcement
    from mixport.pipeline.build_target import BuildOutcome
    from mixport.release.manifest import Manifest

_QUANTISATION, _PROOF, _FILES = "Quantisation", "Validation and gates", "Files"

# Every default is None, so that mixport.toml fills what was not typed; the help shows the default that then
# applies.


def build(
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
    scheme: Annotated[
        str | None,
        typer.Option(
            help="Weight and activation bits, 2 to 8. auto:SIZE[:aA]: mixed weight bits in a model.onnx "
            "of at most SIZE, "
            "a ratio of the float parameters (auto:0.10) or a size (auto:80KB is 80,000 bytes, "
            "auto:80KiB 81,920); A is 8.",
            metavar="wWaA|auto:SIZE",
            show_default="w4a8",
            rich_help_panel=_QUANTISATION,
        ),
    ] = None,
    edge_bits: Annotated[
        int | None,
        typer.Option(
            help="Bits of the first and the last layer.",
            metavar="N",
            show_default="8",
            rich_help_panel=_QUANTISATION,
        ),
    ] = None,
    edge_convention: Annotated[
        str | None,
        typer.Option(
            help="What has these bits: weights of both, what the last one reads, and what the first one "
            "gives (brecq) or not (qdrop); "
            "or only what the first one reads (vit).",
            metavar="brecq|qdrop|vit",
            show_default="brecq",
            rich_help_panel=_QUANTISATION,
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="Repeatable: one bundle each, in OUT/NAME.",
            metavar="NAME|FILE",
            show_default="ort-cpu",
            rich_help_panel=_QUANTISATION,
        ),
    ] = None,
    portable: Annotated[
        bool | None,
        typer.Option(
            "--portable/--no-portable",
            help=(
                "Only forms that give the same codes on every runtime, or the runtime's own softmax, "
                "LayerNorm and adds."
            ),
            show_default="portable",
            rich_help_panel=_QUANTISATION,
        ),
    ] = None,
    iters: Annotated[
        int | None,
        typer.Option(
            help="Reconstruction steps per unit; 0 rounds to nearest. 8-bit codes are never learned.",
            metavar="N",
            show_default="0 for 8-bit weights, 500 for 4 to 7, 2000 below",
            rich_help_panel=_QUANTISATION,
        ),
    ] = None,
    reconstruction: Annotated[
        str | None,
        typer.Option(
            help=f"How integers are chosen: {', '.join(ALGORITHMS)}.",
            metavar="NAME",
            show_default="mixport",
            rich_help_panel=_QUANTISATION,
        ),
    ] = None,
    mlp_reconstruction: Annotated[
        bool | None,
        typer.Option(
            "--mlp-reconstruction/--no-mlp-reconstruction",
            help="First learn the MLPs of transformers with ReLU in the place of GELU.",
            show_default="as the recipe says",
            rich_help_panel=_QUANTISATION,
        ),
    ] = None,
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
    eval_: Annotated[
        Path | None,
        typer.Option(
            "--eval",
            help="Labelled images: npz with images uint8 NHWC and labels int64, or one folder per class.",
            metavar="DIR|FILE.npz",
            show_default="none",
            rich_help_panel=_PROOF,
        ),
    ] = None,
    validation_images: Annotated[
        int | None,
        typer.Option(
            help="Images compared code by code, from --eval or else from calibration.",
            metavar="N",
            show_default="256 up to 64x64 pixels, else 32",
            rich_help_panel=_PROOF,
        ),
    ] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            help="Repeatable: fail unless it holds, e.g. top1_drop<=1.0, size_ratio<=0.2, agreement>=0.98.",
            metavar="EXPR",
            show_default="mismatches==0",
            rich_help_panel=_PROOF,
        ),
    ] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            help="Repeatable: runtimes that must agree.",
            metavar="NAME",
            show_default="native",
            rich_help_panel=_PROOF,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Bundle folder.",
            metavar="DIR",
            show_default="dist/MODEL-SCHEME-TARGET",
            rich_help_panel=_FILES,
        ),
    ] = None,
    config: ConfigOption = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> int:
    """Quantise a model, lower it to ONNX, validate every code, and write a release bundle.

    An interrupted build goes on where it stopped with the same command.
    """
    console = Console(json=json, quiet=quiet)

    from mixport.pipeline.options.config_file import merge, read_config

    options = merge(read_config(config), typed(context))
    options.parse_gates()

    # After the options, so that a mistake in them is answered at once: the pipeline imports torch.
    from mixport.pipeline.build_bundle import build_all

    def show_plan(plan: Announcement) -> None:
        if not json:
            console.note(plan.text())

    def note(text: str) -> None:
        # An interrupt that arrives inside a library's callback is dropped there: the next stage must not
        # start.
        if isinstance(context.obj, threading.Event) and context.obj.is_set():
            raise KeyboardInterrupt
        console.note(text)

    outcomes = build_all(options, progress=console, note=note, on_start=show_plan)
    for outcome in outcomes:
        _print_outcome(console, outcome)
    if json:
        manifests = [outcome.bundle.manifest.document() for outcome in outcomes]
        console.document(manifests[0] if len(manifests) == 1 else {"bundles": manifests})
    failed = [outcome for outcome in outcomes if outcome.failures]
    for outcome in failed:
        for failure in outcome.failures:
            console.error(f"{outcome.bundle.path}: {failure}")
        console.hint(
            f"see {outcome.bundle.path / 'report.html'}, or type mixport inspect {outcome.bundle.path}"
        )
    return ExitCode.FAILED if failed else ExitCode.DONE


def _print_outcome(console: Console, outcome: BuildOutcome) -> None:
    bundle = outcome.bundle
    found = bundle.manifest
    metrics, validation = found.metrics, found.validation
    compared = sum(result.values for result in validation.runtimes)
    differ = sum(result.mismatches for result in validation.runtimes)
    rows: list[list[object]] = [
        ["bundle", bundle.path],
        ["model", f"{found.model.name}, {found.scheme} for {found.target.name}"],
        ["size", f"{metrics.size_bytes} bytes, {metrics.size_ratio:.3f} of the float parameters"],
        ["verdict", f"{validation.verdict}: {differ} of {compared} values differ"],
        [
            "agreement",
            f"{metrics.agreement:.4f} on {metrics.images} images"
            if metrics.agreement is not None
            else _unmeasured(found, "agreement"),
        ],
        [
            "sqnr",
            f"{metrics.sqnr_db:.1f} dB" if metrics.sqnr_db is not None else _unmeasured(found, "sqnr_db"),
        ],
    ]
    if metrics.top1_float is not None and metrics.top1_quantized is not None:
        rows.append(["top-1", f"{metrics.top1_quantized:.2f} %, float {metrics.top1_float:.2f} %"])
    if (latency := found.latency) is not None:
        beside = (
            "float not measured"
            if latency.ratio is None
            else f"{latency.ratio:.2f} of the float model's {latency.float_ms:.2f} ms"
        )
        rows.append(["latency", f"{latency.model_ms:.2f} ms, {beside}"])
    rows.extend(
        ["gate", f"{'met' if gate.passed else 'NOT met'}: {gate.explanation}"] for gate in found.gates
    )
    console.table(["", ""], rows)
    if found.warnings:
        console.note(
            f"{len(found.warnings)} warning{'s' if len(found.warnings) > 1 else ''} above, and in "
            f"{bundle.path / 'report.html'}"
        )
    console.note(f"next: mixport validate {bundle.path}")


def _unmeasured(manifest: Manifest, metric: str) -> str:
    reason = manifest.metrics.reasons.get(metric)
    return f"not measured: {reason}" if reason is not None else "not measured"
