"""mixport build: the main job."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from mixport.cli.console import Console
from mixport.cli.options.declared import takes_options
from mixport.cli.options.shared import ConfigOption, JsonFlag, QuietFlag, stage_note, typed
from mixport.records.errors import ExitCode

if TYPE_CHECKING:
    from mixport.pipeline.announcement import Announcement
    from mixport.pipeline.build_target import BuildOutcome
    from mixport.release.manifest import Manifest


@takes_options()
def build(
    context: typer.Context,
    config: ConfigOption = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    **_: object,
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

    outcomes = build_all(options, progress=console, note=stage_note(context, console), on_start=show_plan)
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
        ["gate", f"{'passed' if gate.passed else 'FAILED'}: {gate.explanation}"] for gate in found.gates
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
