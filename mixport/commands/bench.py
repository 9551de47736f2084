"""mixport bench: latency of a bundle, alone or against other files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixport.commands.flags import JsonFlag, QuietFlag
from mixport.console import Console


def bench(
    bundle: Annotated[Path, typer.Argument(help="Folder that mixport build wrote.", metavar="BUNDLE")],
    against: Annotated[
        list[Path] | None, typer.Option(help="Repeatable: another ONNX file, timed in the same process.", metavar="FILE.onnx")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Budget of the whole measurement.", min=0.1, metavar="S")] = 5.0,
    seed: Annotated[int, typer.Option(help="Seed of the input values.", min=0, metavar="S")] = 0,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Time a bundle's model on onnxruntime: one thread, batch 1, medians of interleaved rounds."""
    console = Console(json=json, quiet=quiet)

    from mixport import bench as benchmark

    rows = benchmark.bench(bundle, against=against or (), seconds=seconds, seed=seed, progress=console)
    if json:
        console.document(
            [
                {
                    "name": row.name,
                    "median_ms": row.latency.median_ms,
                    "p90_ms": row.latency.p90_ms,
                    "rounds": row.latency.rounds,
                    "size_bytes": row.latency.size_bytes,
                    "ratio_to_bundle": row.ratio,
                }
                for row in rows
            ]
        )
        return
    console.table(
        ["file", "median ms", "90 % ms", "rounds", "bytes", "times the bundle"],
        [[row.name, row.latency.median_ms, row.latency.p90_ms, row.latency.rounds, row.latency.size_bytes, row.ratio] for row in rows],
    )
