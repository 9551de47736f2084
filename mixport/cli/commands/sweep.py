"""mixport sweep: one weight through many widths."""

from __future__ import annotations

import typer

from mixport.cli.console import Console
from mixport.cli.options.declared import takes_options
from mixport.cli.options.shared import ConfigOption, JsonFlag, QuietFlag, stage_note, typed
from mixport.pipeline.options.train_options import SweepOptions
from mixport.records.errors import ExitCode


@takes_options(SweepOptions)
def sweep(
    context: typer.Context,
    config: ConfigOption = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    **_: object,
) -> int:
    """Export one weight at many widths: a validated bundle each, a table and a plot.

    MODEL may be the folder of a training of plain weights. Finished bundles come from the cache.
    """
    console = Console(json=json, quiet=quiet)

    from mixport.pipeline.options.config_file import merge, read_config

    options = merge(read_config(config, command="sweep"), typed(context), SweepOptions)

    # After the options, so that a mistake in them is answered at once: the pipeline imports torch.
    from mixport.pipeline.training.sweep import run_sweep

    made = run_sweep(options, progress=console, note=stage_note(context, console))
    if json:
        console.document(made.document())
    else:
        head: list[str] = ["scheme", "steps", "bytes", "top-1", "agreement", "sqnr", "verdict"]
        console.table(
            head,
            [
                [
                    row.scheme,
                    row.iters,
                    row.size_bytes,
                    "" if row.top1 is None else f"{row.top1:.2f} %",
                    "" if row.agreement is None else f"{row.agreement:.4f}",
                    "" if row.sqnr_db is None else f"{row.sqnr_db:.1f} dB",
                    row.verdict,
                ]
                for row in made.rows
            ],
        )
        console.note(f"table and plot: {made.path / 'sweep.json'}, {made.path / 'sweep.svg'}")
    for failure in made.failures:
        console.error(failure)
    return ExitCode.FAILED if made.failures else ExitCode.DONE
