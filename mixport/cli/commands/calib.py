"""mixport calib: the cache of calibration images and stage results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixport.cli.commands.calib_generate import generate
from mixport.cli.commands.calib_prune import prune
from mixport.cli.console import Console
from mixport.cli.options.shared import CacheOption, JsonFlag
from mixport.cli.panels import PanelCommand
from mixport.records.errors import BadInputError, ExitCode

if TYPE_CHECKING:
    from mixport.calibration.sets import SetSummary
    from mixport.storage.store import Store

app = typer.Typer(
    help="Calibration images: make, list, look at, verify, prune.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

KeyArgument = Annotated[str, typer.Argument(help="Key of a set, or its first characters.", metavar="KEY")]
DEFAULT_CACHE = Path("calib_cache")
SET_KIND = "calibration"
_FIRST_PROMPTS = 8

app.command("generate", cls=PanelCommand)(generate)


@app.command("list")
def list_sets(cache: CacheOption = DEFAULT_CACHE, json: JsonFlag = False) -> None:
    """List the calibration sets in the cache, newest first."""
    console = Console(json=json)

    from mixport.calibration.sets import list_drawn_folders, list_sets, stage_results

    store = _store(cache)
    sets = list_sets(store)
    if json:
        console.document([_facts(one) for one in sets])
        return
    columns = ["key", "method", "images", "size", "seed", "generator", "bytes", "created", "source"]
    console.table(columns, [_row(one) for one in sets])
    drawn_folders = list_drawn_folders(store)
    if drawn_folders:
        console.line("drawn images, which sets of any count are made from:")
        console.table(columns, [_row(one) for one in drawn_folders])
    results = stage_results(store)
    console.note(f"stage results of builds: {len(results)}, {sum(entry.bytes for entry in results)} bytes")


@app.command("show")
def show(key: KeyArgument, cache: CacheOption = DEFAULT_CACHE, json: JsonFlag = False) -> None:
    """Show one set: what was asked, what drew it, what came out, where it lies, and its first prompts."""
    console = Console(json=json)

    from mixport.calibration.details import details_of
    from mixport.calibration.sets import find_set

    store = _store(cache)
    one = find_set(store, key)
    details = details_of(store, one)
    parts = {"generator_details": details.generator, "prompts": details.prompts, "filters": details.filters}
    first = list(details.texts[:_FIRST_PROMPTS])
    if json:
        console.document({**_facts(one), **parts, "first_prompts": first})
        return
    rows = [[name, value] for name, value in _facts(one).items()]
    for title, part in parts.items():
        # What was not asked says nothing, and tables inside the table are for --json.
        said = {
            name: value
            for name, value in (part or {}).items()
            if value not in (None, "") and not isinstance(value, dict)
        }
        rows += [[f"{title.split('_')[0]}: {name}", value] for name, value in said.items()]
    rows += [["first prompts" if position == 0 else "", text] for position, text in enumerate(first)]
    console.table(["", ""], rows)


@app.command("sheet")
def sheet(
    key: KeyArgument,
    out: Annotated[Path, typer.Option(help="PNG file to write.", metavar="FILE.png")] = Path("sheet.png"),
    columns: Annotated[int, typer.Option(help="Images a row.", min=1, metavar="N")] = 8,
    limit: Annotated[int, typer.Option(help="Images at most.", min=1, metavar="N")] = 64,
    cache: CacheOption = DEFAULT_CACHE,
    json: JsonFlag = False,
) -> None:
    """Put the first images of a set on one sheet, with their prompts."""
    console = Console(json=json)

    from mixport.calibration.details import details_of, sheet_title
    from mixport.calibration.sets import find_set
    from mixport.calibration.sheet import contact_sheet

    store = _store(cache)
    one = find_set(store, key)
    if one.kind != SET_KIND:
        raise BadInputError(
            f"{one.key[:12]} names drawn images, not a set made from them", hint="mixport calib list"
        )
    details = details_of(store, one)
    shown = contact_sheet(
        one.path,
        out,
        columns=columns,
        limit=limit,
        title=sheet_title(one, details),
        prompts=details.texts,
    )
    if json:
        console.document({"key": one.key, "sheet": str(out), "images": shown})
        return
    console.line(f"{out}: {shown} images")


@app.command("verify")
def verify(
    keys: Annotated[
        list[str] | None, typer.Argument(help="Sets; the whole cache where none is given.", metavar="KEY")
    ] = None,
    cache: CacheOption = DEFAULT_CACHE,
    json: JsonFlag = False,
) -> int:
    """Check every file's size and SHA-256; exit code 3 where an entry is damaged."""
    console = Console(json=json)

    from mixport.calibration.sets import find_set, stage_results, verify_sets

    store = _store(cache)
    wanted = [find_set(store, key).key for key in keys] if keys else None
    problems = verify_sets(store, keys=wanted)
    if wanted is None:
        problems |= {
            f"{entry.kind}/{entry.key}": store.verify(entry.kind, entry.key) for entry in stage_results(store)
        }
    damaged = {name: lines for name, lines in problems.items() if lines}
    if json:
        console.document({"entries": len(problems), "damaged": damaged})
    for name, lines in damaged.items():
        console.line(f"{name}: {'; '.join(lines)}")
    console.line(f"{len(problems)} entries, {len(damaged)} damaged")
    if damaged:
        console.hint("the next build that needs a damaged entry sets it aside and makes it again")
    return ExitCode.FAILED if damaged else ExitCode.DONE


def _store(cache: Path) -> Store:
    from mixport.storage.store import Store

    return Store(cache)


def _row(one: SetSummary) -> list[object]:
    return [
        one.key[:12],
        one.method,
        one.count,
        _size(one),
        one.seed,
        one.generator,
        one.bytes,
        one.created,
        one.source,
    ]


def _size(one: SetSummary) -> str | None:
    # Drawn images are brought to a size when a set is made from them.
    return f"{one.size[0]}x{one.size[1]}" if all(one.size) else None


def _facts(one: SetSummary) -> dict[str, object]:
    return {
        "key": one.key,
        "method": one.method,
        "source": one.source,
        "generator": one.generator,
        "drawn": one.drawn,
        "images": one.count,
        "size": list(one.size),
        "seed": one.seed,
        "content_sha256": one.content_sha256,
        "bytes": one.bytes,
        "created": None if one.created is None else one.created.isoformat(),
        "path": str(one.path),
    }


# Last, as in the list of commands.
app.command("prune")(prune)
