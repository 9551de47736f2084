"""mixport validate: check a bundle again, here."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mixport.cli.console import Console
from mixport.cli.options.shared import JsonFlag, QuietFlag
from mixport.records.errors import ExitCode


def validate(
    bundle: Annotated[Path, typer.Argument(help="Folder that mixport build wrote.", metavar="BUNDLE")],
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            help="Repeatable: runtimes to compare, see mixport runtimes list.",
            metavar="NAME",
            show_default="native",
        ),
    ] = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> int:
    """Check hashes and proofs, run the model on each runtime, and compare every code with the bundle's golden
    vectors.
    """
    console = Console(json=json, quiet=quiet)

    from mixport.pipeline.check_bundle import check_bundle

    found = check_bundle(bundle, runtimes=runtime or ("native",), progress=console)
    for problem in (*found.hash_problems, *found.proof_problems):
        console.error(f"{bundle}: {problem}")
    located = {(place.executor, place.site, place.index) for place in found.localisations}
    for one in found.divergences:
        if (one.executor, one.site, one.index) in located:
            continue
        console.error(
            f"{bundle}: {one.executor} differs first at {one.site}{list(one.index)}: got {one.got}, "
            f"golden {one.expected}"
        )
    for place in found.localisations:
        console.error(f"{bundle}: {place.text()}", hint=place.repair)
    for result in found.runtimes:
        counts = f"{result.mismatches} of {result.values} values differ, {result.tensors} tensors"
        console.line(f"{result.name} ({result.version}): {counts}; {result.cpu}")
    console.line(f"{bundle}: {found.verdict}")
    if json:
        console.document({"bundle": str(bundle), **asdict(found)})
    for gate in found.gates_not_met:
        console.error(f"{bundle}: gate {gate} was not met when it was built")
    if found.verdict == "exact" and not found.gates_not_met:
        return ExitCode.DONE
    console.hint("the command under `reproduce` in its manifest builds it again")
    return ExitCode.FAILED
