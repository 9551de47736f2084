"""mixport calib: the cache of calibration images and stage results."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixport.commands.flags import CacheOption, JsonFlag, QuietFlag
from mixport.console import Console
from mixport.errors import BadOptionError, ExitCode

if TYPE_CHECKING:
    from mixport.calibration import SetSummary
    from mixport.store import Entry, Store

app = typer.Typer(help="Calibration images: make, list, look at, verify, prune.", no_args_is_help=True, rich_markup_mode=None)

KeyArgument = Annotated[str, typer.Argument(help="Key of a set, or its first characters.", metavar="KEY")]
DEFAULT_CACHE = Path("calib_cache")
SET_KIND = "calibration"


@app.command("generate")
def generate(
    model: Annotated[str | None, typer.Argument(help="As for build.", metavar="[MODEL]", show_default="builtin:cifar10-resnet20")] = None,
    calib: Annotated[str | None, typer.Option(help="images:DIR, images:FILE.npz or noise.", metavar="METHOD", show_default="mixup")] = None,
    weights: Annotated[Path | None, typer.Option(help="As for build.", metavar="FILE")] = None,
    random_weights: Annotated[bool | None, typer.Option("--random-weights", help="As for build.")] = None,
    model_arg: Annotated[list[str] | None, typer.Option(help="As for build.", metavar="KEY=VALUE")] = None,
    input_size: Annotated[str | None, typer.Option(help="As for build.", metavar="SIZE")] = None,
    crop: Annotated[float | None, typer.Option(help="As for build.", metavar="FRACTION")] = None,
    images: Annotated[int | None, typer.Option(help="Calibration images.", metavar="N", show_default="512")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the choice of images.", metavar="S", show_default="0")] = None,
    cache: Annotated[Path | None, typer.Option(help="As for build.", metavar="DIR", show_default="calib_cache")] = None,
    config: Annotated[
        Path | None, typer.Option(help="As for build.", metavar="FILE", show_default="mixport.toml where there is one")
    ] = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Make calibration images as a build with the same options would, and stop there."""
    console = Console(json=json, quiet=quiet)
    given: dict[str, object] = {
        "model": model,
        "calib": calib,
        "weights": weights,
        "random_weights": random_weights,
        "model_arg": model_arg,
        "input_size": input_size,
        "crop": crop,
        "images": images,
        "seed": seed,
        "cache": cache,
    }

    from mixport.config import merge, read_config

    options = merge(read_config(config), given)

    # After the options, so that a mistake in them is answered at once: the pipeline imports torch.
    from mixport.pipeline import calibrate_only

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


@app.command("list")
def list_sets(cache: CacheOption = DEFAULT_CACHE, json: JsonFlag = False) -> None:
    """List the calibration sets in the cache, newest first."""
    console = Console(json=json)

    from mixport import calibration

    store = _store(cache)
    sets = calibration.list_sets(store)
    if json:
        console.document([_facts(one) for one in sets])
        return
    columns = ["key", "method", "images", "size", "seed", "bytes", "created", "source"]
    console.table(
        columns, [[one.key[:12], one.method, one.count, _size(one), one.seed, one.bytes, one.created, one.source] for one in sets]
    )
    results = _stage_results(store)
    console.note(f"stage results of builds: {len(results)}, {sum(entry.bytes for entry in results)} bytes")


@app.command("show")
def show(key: KeyArgument, cache: CacheOption = DEFAULT_CACHE, json: JsonFlag = False) -> None:
    """Show one set: what was asked, what came out, where it lies."""
    console = Console(json=json)

    from mixport import calibration

    facts = _facts(calibration.find_set(_store(cache), key))
    if json:
        console.document(facts)
        return
    console.table(["", ""], [[name, value] for name, value in facts.items()])


@app.command("sheet")
def sheet(
    key: KeyArgument,
    out: Annotated[Path, typer.Option(help="PNG file to write.", metavar="FILE.png")] = Path("sheet.png"),
    columns: Annotated[int, typer.Option(help="Images a row.", min=1, metavar="N")] = 8,
    limit: Annotated[int, typer.Option(help="Images at most.", min=1, metavar="N")] = 64,
    cache: CacheOption = DEFAULT_CACHE,
    json: JsonFlag = False,
) -> None:
    """Draw the first images of a set on one sheet."""
    console = Console(json=json)

    from mixport import calibration

    one = calibration.find_set(_store(cache), key)
    shown = calibration.contact_sheet(one.path, out, columns=columns, limit=limit)
    if json:
        console.document({"key": one.key, "sheet": str(out), "images": shown})
        return
    console.line(f"{out}: {shown} images")


@app.command("verify")
def verify(
    keys: Annotated[list[str] | None, typer.Argument(help="Sets; the whole cache where none is given.", metavar="KEY")] = None,
    cache: CacheOption = DEFAULT_CACHE,
    json: JsonFlag = False,
) -> int:
    """Check every file's size and SHA-256; exit code 3 where an entry is damaged."""
    console = Console(json=json)

    from mixport import calibration

    store = _store(cache)
    wanted = [calibration.find_set(store, key).key for key in keys] if keys else None
    problems = calibration.verify_sets(store, keys=wanted)
    if wanted is None:
        problems |= {f"{entry.kind}/{entry.key}": store.verify(entry.kind, entry.key) for entry in _stage_results(store)}
    damaged = {name: lines for name, lines in problems.items() if lines}
    if json:
        console.document({"entries": len(problems), "damaged": damaged})
    for name, lines in damaged.items():
        console.line(f"{name}: {'; '.join(lines)}")
    console.line(f"{len(problems)} entries, {len(damaged)} damaged")
    if damaged:
        console.hint("the next build sets a damaged entry aside and makes it again")
    return ExitCode.FAILED if damaged else ExitCode.DONE


@app.command("prune")
def prune(
    keys: Annotated[list[str] | None, typer.Argument(help="Calibration sets to delete.", metavar="KEY")] = None,
    stages: Annotated[bool, typer.Option("--stages", help="Stage results of builds, which a build makes again.")] = False,
    older_than: Annotated[float | None, typer.Option(help="Sets older than this.", min=0.0, metavar="DAYS")] = None,
    keep_gb: Annotated[float | None, typer.Option(help="The oldest sets, until the rest fits.", min=0.0, metavar="GB")] = None,
    cache: CacheOption = DEFAULT_CACHE,
    json: JsonFlag = False,
) -> None:
    """Delete calibration sets, or what builds left in the cache to go on from. Deletes nothing that was not named."""
    console = Console(json=json)
    if not keys and not stages and older_than is None and keep_gb is None:
        raise BadOptionError(
            "nothing named to delete, allowed KEY, --stages, --older-than or --keep-gb", hint="mixport calib prune --stages"
        )

    from mixport import calibration

    store = _store(cache)
    chosen = calibration.select_for_pruning(
        calibration.list_sets(store),
        now=datetime.now(UTC),
        keys=[calibration.find_set(store, key).key for key in keys or ()],
        older_than=None if older_than is None else timedelta(days=older_than),
        keep_bytes=None if keep_gb is None else int(keep_gb * 1e9),
    )
    gone = [(SET_KIND, one.key, one.bytes) for one in chosen]
    if stages:
        gone += [(entry.kind, entry.key, entry.bytes) for entry in _stage_results(store)]
    for kind, key, _ in gone:
        store.remove(kind, key)
    size = sum(taken for _, _, taken in gone)
    if json:
        console.document({"removed": [f"{kind}/{key}" for kind, key, _ in gone], "bytes": size})
    console.line(f"removed {len(gone)} entries, {size} bytes")


def _store(cache: Path) -> Store:
    from mixport.store import Store

    return Store(cache)


def _stage_results(store: Store) -> list[Entry]:
    return [entry for entry in store.entries() if entry.kind != SET_KIND]


def _size(one: SetSummary) -> str:
    return f"{one.size[0]}x{one.size[1]}"


def _facts(one: SetSummary) -> dict[str, object]:
    return {
        "key": one.key,
        "method": one.method,
        "source": one.source,
        "images": one.count,
        "size": list(one.size),
        "seed": one.seed,
        "content_sha256": one.content_sha256,
        "bytes": one.bytes,
        "created": None if one.created is None else one.created.isoformat(),
        "path": str(one.path),
    }
