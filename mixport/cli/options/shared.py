"""Options that several commands share, so that they are spelt and explained once, and what was typed of
them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from mixport.cli.console import Console

JsonFlag = Annotated[bool, typer.Option("--json", help="Print exactly one JSON document on stdout.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", help="No progress, no notes: only results and errors.")]
YesFlag = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
CacheOption = Annotated[
    Path, typer.Option("--cache", help="Folder of calibration images and stage results.", metavar="DIR")
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="TOML file with these options under [build].",
        metavar="FILE",
        show_default="mixport.toml where there is one",
    ),
]

#: Parameters that are no options of a build.
_OWN = ("config", "json", "quiet")


def typed(context: typer.Context) -> dict[str, object]:
    """The options of a build as they were typed, by the names that `BuildOptions` gives them; None where
    nothing was typed.
    """
    return {name: value for name, value in context.params.items() if name not in _OWN}


def stage_note(context: typer.Context, console: Console) -> Callable[[str], None]:
    """What the stages of a job tell people by. An interrupt that arrives inside a library's callback is
    dropped there: the next stage must not start.
    """

    def note(text: str) -> None:
        if isinstance(context.obj, threading.Event) and context.obj.is_set():
            raise KeyboardInterrupt
        console.note(text)

    return note
