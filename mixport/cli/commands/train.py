"""mixport train: weights, widths and intervals by gradient."""

from __future__ import annotations

import typer

from mixport.cli.console import Console
from mixport.cli.options.declared import takes_options
from mixport.cli.options.shared import ConfigOption, JsonFlag, QuietFlag, stage_note, typed
from mixport.pipeline.options.train_options import TrainOptions


@takes_options(TrainOptions)
def train(
    context: typer.Context,
    config: ConfigOption = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    **_: object,
) -> None:
    """Train a model for low bits, and write its weights, widths and intervals for the exporter.

    An interrupted training goes on after the last finished epoch with the same command.
    """
    console = Console(json=json, quiet=quiet)

    from mixport.pipeline.options.config_file import merge, read_config

    options = merge(read_config(config, command="train"), typed(context), TrainOptions)

    # After the options, so that a mistake in them is answered at once: the pipeline imports torch.
    from mixport.pipeline.training.train_model import run_training

    result = run_training(
        options, progress=console, note=stage_note(context, console), on_start=None if json else console.note
    )
    record = result.record
    if json:
        console.document({"path": str(result.path), **record.model_dump()})
        return
    last = record.curve[-1]
    watched = "accuracy" if record.data.labels else "agreement with the teacher"
    rows: list[list[object]] = [
        ["folder", result.path],
        ["method", f"{record.method}, {len(record.curve)} epochs on {record.data.images} images"],
        ["loss", f"{last.loss:.4g}"],
        ["held out", f"{100 * last.held_out:.2f} % {watched} on {record.data.held_out} images"],
    ]
    rows.extend([name.replace("_", " "), f"{value:.4g}"] for name, value in last.figures.items())
    console.table(["", ""], rows)
    for decision in record.decisions:
        console.note(f"{decision['where']}: {decision['what']} ({decision['why']})")
    console.note(f"next: mixport build {record.model['source']} --trained {result.path}")
