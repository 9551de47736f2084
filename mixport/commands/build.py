"""mixport build: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixport.commands.flags import JsonFlag, QuietFlag
from mixport.console import Console
from mixport.errors import ExitCode

if TYPE_CHECKING:
    from mixport.pipeline import BuildOutcome

# Every default is None here, so that mixport.toml fills what was not typed; the help shows the default that then applies.


def build(
    model: Annotated[
        str | None,
        typer.Argument(
            help="builtin:NAME, timm:ARCH, package.module:factory, or FILE.pt2.",
            metavar="[MODEL]",
            show_default="builtin:cifar10-resnet20",
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="safetensors state dict; a .pth only through weights_only.", metavar="FILE", show_default="timm's pretrained"),
    ] = None,
    random_weights: Annotated[
        bool | None, typer.Option("--random-weights", help="Seeded random weights, to try an architecture without its weights.")
    ] = None,
    model_arg: Annotated[
        list[str] | None, typer.Option(help="Passed to the model's factory. Repeatable.", metavar="KEY=VALUE", show_default="none")
    ] = None,
    input_size: Annotated[
        str | None, typer.Option(help="Input side in pixels, or HEIGHTxWIDTH.", metavar="SIZE", show_default="the model's own")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(help="Per RGB channel, in units of [0, 1].", metavar="R,G,B", show_default="the model's own")
    ] = None,
    std: Annotated[
        str | None, typer.Option(help="Per RGB channel, in units of [0, 1].", metavar="R,G,B", show_default="the model's own")
    ] = None,
    crop: Annotated[
        float | None, typer.Option(help="Crop side / resized shorter side.", metavar="FRACTION", show_default="the model's own")
    ] = None,
    scheme: Annotated[
        str | None,
        typer.Option(help="Weight and activation bits, 2 to 8. auto:SIZE is yet to come.", metavar="wWaA", show_default="w4a8"),
    ] = None,
    edge_bits: Annotated[int | None, typer.Option(help="Bits of the first and the last layer.", metavar="N", show_default="8")] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="Repeatable: one bundle each, in OUT/NAME.", metavar="NAME|FILE", show_default="ort-cpu"),
    ] = None,
    calib: Annotated[
        str | None,
        typer.Option(
            help="images:DIR, images:FILE.npz or noise. mixup, single, genq and distill are not part of this version.",
            metavar="METHOD",
            show_default="mixup",
        ),
    ] = None,
    generator: Annotated[
        str | None,
        typer.Option(help="Image generator; no effect on images and noise.", metavar="ID", show_default="builtin"),
    ] = None,
    classes: Annotated[Path | None, typer.Option(help="JSON list of class names.", metavar="FILE", show_default="the model's own")] = None,
    images: Annotated[int | None, typer.Option(help="Calibration images.", metavar="N", show_default="512")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.", metavar="S", show_default="0")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or auto; cuda is yet to come.", metavar="DEVICE", show_default="auto")] = None,
    iters: Annotated[
        int | None,
        typer.Option(
            help="Reconstruction steps per unit; 0 rounds to nearest. Only 0 in this version, whatever the widths.",
            metavar="N",
            show_default="0",
        ),
    ] = None,
    eval_: Annotated[
        Path | None,
        typer.Option(
            "--eval",
            help="Labelled images: npz with images uint8 NHWC and labels int64, or one folder per class.",
            metavar="DIR|FILE.npz",
            show_default="none",
        ),
    ] = None,
    validation_images: Annotated[
        int | None,
        typer.Option(
            help="Images compared code by code, from --eval or else from calibration.",
            metavar="N",
            show_default="256 up to 64x64 pixels, else 32",
        ),
    ] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            help="Repeatable: fail unless it holds, e.g. top1_drop<=1.0, size_ratio<=0.2, agreement>=0.98.",
            metavar="EXPR",
            show_default="mismatches==0",
        ),
    ] = None,
    runtime: Annotated[
        list[str] | None, typer.Option(help="Repeatable: runtimes that must agree.", metavar="NAME", show_default="native")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Bundle folder.", metavar="DIR", show_default="dist/NAME")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of calibration images and stage results.", metavar="DIR", show_default="calib_cache")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file with these options under [build].", metavar="FILE", show_default="mixport.toml where there is one"),
    ] = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> int:
    """Quantise a model, lower it to ONNX, validate every code, and write a release bundle.

    An interrupted build goes on where it stopped with the same command.
    """
    given: dict[str, object] = {
        "model": model,
        "weights": weights,
        "random_weights": random_weights,
        "model_arg": model_arg,
        "input_size": input_size,
        "mean": mean,
        "std": std,
        "crop": crop,
        "scheme": scheme,
        "edge_bits": edge_bits,
        "target": target,
        "calib": calib,
        "generator": generator,
        "classes": classes,
        "images": images,
        "seed": seed,
        "device": device,
        "iters": iters,
        "eval": eval_,
        "validation_images": validation_images,
        "gate": gate,
        "runtime": runtime,
        "out": out,
        "cache": cache,
    }
    console = Console(json=json, quiet=quiet)

    from mixport.config import merge, read_config

    options = merge(read_config(config), given)

    # After the options, so that a mistake in them is answered at once: the pipeline imports torch.
    from mixport.pipeline import build_all

    outcomes = build_all(options, progress=console, note=console.note)
    for outcome in outcomes:
        _print_outcome(console, outcome)
    if json:
        manifests = [outcome.bundle.manifest.document() for outcome in outcomes]
        console.document(manifests[0] if len(manifests) == 1 else {"bundles": manifests})
    failed = [outcome for outcome in outcomes if outcome.failures]
    for outcome in failed:
        for failure in outcome.failures:
            console.error(f"{outcome.bundle.path}: {failure}")
        console.hint(f"see {outcome.bundle.path / 'report.html'}, or type mixport inspect {outcome.bundle.path}")
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
        ["agreement", f"{metrics.agreement:.4f} on {metrics.images} images" if metrics.agreement is not None else "not measured"],
        ["sqnr", f"{metrics.sqnr_db:.1f} dB" if metrics.sqnr_db is not None else "not measured"],
    ]
    if metrics.top1_float is not None and metrics.top1_quantized is not None:
        rows.append(["top-1", f"{metrics.top1_quantized:.2f} %, float {metrics.top1_float:.2f} %"])
    rows.extend(["gate", f"{'met' if gate.passed else 'NOT met'}: {gate.explanation}"] for gate in found.gates)
    console.table(["", ""], rows)
    console.note(f"next: mixport validate {bundle.path}")
