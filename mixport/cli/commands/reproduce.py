"""Read a manifest's `reproduce` back: the command line of a build, parsed by the command's own parser."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mixport.cli.commands.build import build
from mixport.cli.options.shared import typed
from mixport.records.errors import BadInputError, MixportError

if TYPE_CHECKING:
    from mixport.pipeline.options.build_options import BuildOptions


def read_command(line: str, *, source: Path) -> BuildOptions:
    """The options that a build's command line gives; what mixport.toml says here counts for nothing: the line
    holds all of it.

    Args:
        line: `mixport build ...`, as a manifest holds it.
        source: the bundle, for messages.

    Raises:
        BadInputError: no such command line, or options that this version does not take.
    """
    from mixport.pipeline.options.config_file import merge

    hint = f"build {source} again, or mixport bench {source} --against FILE.onnx"
    try:
        program, command, *words = shlex.split(line)
    except ValueError as error:
        raise BadInputError(
            f"{source}: its manifest has no command line under `reproduce`, but {line!r}", hint=hint
        ) from error
    if (program, command) != ("mixport", "build"):
        raise BadInputError(
            f"{source}: `reproduce` of its manifest is {line!r}, allowed mixport build ...", hint=hint
        )
    app = typer.Typer(add_completion=False)
    app.command()(build)
    parser: Any = typer.main.get_command(app)
    try:
        return merge({}, typed(parser.make_context("build", words)))
    except (MixportError, typer.TyperException) as error:
        why = str(error) if isinstance(error, MixportError) else error.format_message()
        raise BadInputError(
            f"{source}: this version cannot read `reproduce` of its manifest: {why}", hint=hint
        ) from error
