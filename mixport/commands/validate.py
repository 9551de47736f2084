"""mixport validate: check a bundle again, here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixport.commands.flags import JsonFlag, QuietFlag


def validate(
    bundle: Annotated[Path, typer.Argument(help="Folder that mixport build wrote.", metavar="BUNDLE")],
    runtime: Annotated[
        list[str] | None, typer.Option(help="Repeatable: runtimes to compare.", metavar="NAME", show_default="native")
    ] = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> int:
    """Check hashes, load the model with onnxruntime, and compare every code with the bundle's golden vectors."""
    raise NotImplementedError
