"""mixport calib prune: delete calibration sets and stage results, after a question."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixport.cli.console import Console
from mixport.cli.options.shared import CacheOption, JsonFlag, YesFlag
from mixport.records.errors import BadOptionError, ExitCode

if TYPE_CHECKING:
    from mixport.calibration.sets import SetSummary
    from mixport.storage.store import Entry

_SHOWN = 20


def prune(
    keys: Annotated[
        list[str] | None, typer.Argument(help="Calibration sets, or drawn images, to delete.", metavar="KEY")
    ] = None,
    stages: Annotated[
        bool, typer.Option("--stages", help="Stage results of builds, which a build makes again.")
    ] = False,
    older_than: Annotated[
        float | None, typer.Option(help="Sets and drawn images older than this.", min=0.0, metavar="DAYS")
    ] = None,
    keep_gb: Annotated[
        float | None,
        typer.Option(help="The oldest sets and drawn images, until the rest fits.", min=0.0, metavar="GB"),
    ] = None,
    cache: CacheOption = Path("calib_cache"),
    yes: YesFlag = False,
    json: JsonFlag = False,
) -> int:
    """Delete calibration sets, or what builds left in the cache to go on from.

    Deletes nothing that was not named, and asks before it deletes: --yes answers, and is needed where there
    is no terminal.
    """
    console = Console(json=json)
    if not keys and not stages and older_than is None and keep_gb is None:
        raise BadOptionError(
            "nothing named to delete, allowed KEY, --stages, --older-than or --keep-gb",
            hint="mixport calib prune --stages",
        )

    from mixport.calibration.sets import prunable, remove
    from mixport.storage.store import Store

    store = Store(cache)
    gone = prunable(
        store,
        now=datetime.now(UTC),
        keys=keys or (),
        stages=stages,
        older_than=None if older_than is None else timedelta(days=older_than),
        keep_bytes=None if keep_gb is None else int(keep_gb * 1e9),
    )
    if gone and not yes and not _agreed(console, gone, cache):
        console.note("nothing was deleted")
        if json:
            console.document({"removed": [], "bytes": 0})
        return ExitCode.DONE
    removed = [entry for entry in gone if remove(store, entry)]
    for entry in gone:
        if entry not in removed:
            console.note(f"{entry.kind}/{entry.key[:12]} is in use: another process draws there")
    size = sum(entry.bytes for entry in removed)
    if json:
        console.document({"removed": [f"{entry.kind}/{entry.key}" for entry in removed], "bytes": size})
    console.line(f"removed {len(removed)} entries, {size} bytes")
    return ExitCode.DONE


def _agreed(console: Console, gone: Sequence[SetSummary | Entry], cache: Path) -> bool:
    """Say what would go, and ask. Raises BadOptionError where nobody can answer."""
    size = sum(entry.bytes for entry in gone)
    for entry in gone[:_SHOWN]:
        made = f"{entry.created:%Y-%m-%d %H:%M}" if entry.created is not None else "unreadable"
        console.note(f"  {entry.kind}/{entry.key[:12]}  {entry.bytes} bytes  {made}")
    if len(gone) > _SHOWN:
        console.note(f"  ... {len(gone)} in all")
    what = f"{len(gone)} entries, {size} bytes in {cache}"
    if not sys.stdin.isatty():
        raise BadOptionError(
            f"would delete {what}, and there is no terminal to ask on", hint="the same command with --yes"
        )
    try:
        # Python's input() writes the end of its prompt to stdout, which carries data only.
        with contextlib.redirect_stdout(sys.stderr):
            return typer.confirm(f"delete {what}?", err=True)
    except typer.Abort:  # Ctrl-C or the end of the input instead of an answer
        return False
