"""mixport bench: latency of a bundle, alone or against other files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixport.cli.console import Console
from mixport.cli.options.shared import CacheOption, JsonFlag, QuietFlag
from mixport.cli.profile_table import profile_document, show_profile

if TYPE_CHECKING:
    from mixport.pipeline.bench import BenchRow, Contender
    from mixport.release.bundle import ReleaseBundle


def bench(
    bundle: Annotated[Path, typer.Argument(help="Folder that mixport build wrote.", metavar="BUNDLE")],
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="Repeatable: what is timed in the same process. float is torch's export of the bundle's "
            "model, static "
            "onnxruntime's quantize_static of that file; both are made once and kept in the cache.",
            metavar="float|static|FILE.onnx",
        ),
    ] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            help="Repeatable: where it is timed, e.g. wasm or ssh:HOST.",
            metavar="NAME",
            show_default="native",
        ),
    ] = None,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="Also time by operator and by module of the float model, and what is no integer compute.",
        ),
    ] = False,
    top: Annotated[
        int, typer.Option(help="Rows of each table of --profile; one more has the rest.", min=1, metavar="N")
    ] = 15,
    seconds: Annotated[
        float, typer.Option(help="Budget of the whole measurement.", min=0.1, metavar="S")
    ] = 5.0,
    seed: Annotated[int, typer.Option(help="Seed of the input values.", min=0, metavar="S")] = 0,
    cache: CacheOption = Path("calib_cache"),
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Time a bundle's model on onnxruntime: one thread, batch 1, medians of interleaved rounds.

    mixport bench BUNDLE --against float --against static says what quantisation brought, and what the
    runtime's own quantiser would.
    """
    console = Console(json=json, quiet=quiet)

    from mixport.pipeline import bench as benchmark
    from mixport.release.bundle import read_bundle
    from mixport.validate.runtimes import open_runtimes

    found = read_bundle(bundle)
    names = [*dict.fromkeys(runtime or [benchmark.NATIVE])]
    others = {one.name: one for one in open_runtimes([name for name in names if name != benchmark.NATIVE])}
    contenders = _contenders(against or [], bundle=found, cache=cache, console=console)
    rows: list[BenchRow] = []
    for name in names:
        if name in others:
            console.note(f"timing on {name} ...")
        rows += benchmark.bench(
            found, against=contenders, seconds=seconds, seed=seed, progress=console, runtime=others.get(name)
        )
    profiled = benchmark.profile_bundle(found, seed=seed, progress=console) if profile else None
    if json:
        latency = [_document(row) for row in rows]
        console.document(
            latency if profiled is None else {"latency": latency, "profile": profile_document(profiled)}
        )
        return
    _print(console, rows)
    if profiled is not None:
        native = next((row.latency.median_ms for row in rows if row.runtime == benchmark.NATIVE), None)
        show_profile(console, profiled, inference_ms=native, top=top)


def _contenders(
    names: Sequence[str], *, bundle: ReleaseBundle, cache: Path, console: Console
) -> list[Contender]:
    """The files to time against, in the order asked for; a file that is called float is ./float."""
    from mixport.pipeline.bench import Contender

    made: dict[str, Path] = {}
    wanted = [name for name in ("float", "static") if name in names]
    if wanted:
        from mixport.cli.commands.reproduce import read_command
        from mixport.pipeline.reference_files import reference_files

        options = read_command(bundle.manifest.reproduce, source=bundle.path)
        made = reference_files(
            wanted, bundle=bundle, options=options, cache=cache, progress=console, note=console.note
        )
    return [Contender(name=name, path=made.get(name, Path(name))) for name in names]


def _print(console: Console, rows: Sequence[BenchRow]) -> None:
    console.table(
        ["file", "runtime", "median ms", "90 % ms", "rounds", "bytes", "bundle / file", "file / bundle"],
        [
            [
                row.name,
                row.runtime,
                row.latency.median_ms,
                row.latency.p90_ms,
                row.latency.rounds,
                row.latency.size_bytes,
                row.bundle_ratio,
                row.ratio,
            ]
            for row in rows
        ],
    )
    for row in rows:
        if row is next(one for one in rows if one.runtime == row.runtime):
            continue  # the bundle itself
        verdict = "faster" if row.bundle_ratio < 1.0 else "slower"
        console.line(
            f"bundle / {row.name} on {row.runtime}: {row.bundle_ratio:.2f}, the bundle is {verdict} "
            "(below 1 is faster)"
        )


def _document(row: BenchRow) -> dict[str, object]:
    return {
        "name": row.name,
        "runtime": row.runtime,
        "median_ms": row.latency.median_ms,
        "fastest_ms": row.latency.fastest_ms,
        "quartiles_ms": row.latency.quartiles_ms,
        "p90_ms": row.latency.p90_ms,
        "rounds": row.latency.rounds,
        "size_bytes": row.latency.size_bytes,
        "ratio_to_bundle": row.ratio,
        "bundle_ratio": row.bundle_ratio,
    }
