"""Options that several commands share, so that they are spelt and explained once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

JsonFlag = Annotated[bool, typer.Option("--json", help="Print exactly one JSON document on stdout.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", help="No progress, no notes: only results and errors.")]
CacheOption = Annotated[Path, typer.Option("--cache", help="Folder of calibration images and stage results.", metavar="DIR")]
