"""mixport calib generate: the calibration images of a build, and no more."""

from __future__ import annotations

import typer

from mixport.cli.console import Console
from mixport.cli.options.declared import takes_options
from mixport.cli.options.shared import ConfigOption, JsonFlag, QuietFlag, typed
from mixport.pipeline.options.shown import FILTERS, GENERATOR, IMAGES, MODEL, PROMPTS


@takes_options(panels=(MODEL, IMAGES, PROMPTS, GENERATOR, FILTERS))
def generate(
    context: typer.Context,
    config: ConfigOption = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    **_: object,
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
