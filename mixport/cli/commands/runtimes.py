"""mixport runtimes: what can validate here, and how to get the others."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from mixport.cli.console import Console
from mixport.cli.options.shared import JsonFlag, QuietFlag

app = typer.Typer(
    help="Runtimes: what can validate here, and how to get the others.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("list")
def list_runtimes(json: JsonFlag = False) -> None:
    """List the runtimes: present or not, version, what is missing, and about how much fetching it takes."""
    console = Console(json=json)

    from mixport.validate.runtimes import survey

    found = survey()
    if json:
        console.document(
            [{**asdict(one), "version": one.runtime.partition(" ")[2], "cpu": one.where} for one in found]
        )
        return
    rows = [
        [
            one.name,
            "present" if one.present else "missing",
            one.runtime,
            one.where,
            f"{one.download_mb} MB" if one.download_mb else "",
        ]
        for one in found
    ]
    rows.append(["NAME@VERSION", "", "another version", "as NAME, e.g. native@1.31.1", ""])
    rows.append(["ssh:HOST", "", "onnxruntime of the host", "python3 there, with numpy and onnxruntime", ""])
    rows.append(["command:LINE", "", "any", "a command line with {job}, see docs/runtimes.md", ""])
    console.table(["name", "", "runtime", "runs on", "to fetch"], rows)
    for one in found:
        if not one.present:
            console.note(one.missing)
    for hint in dict.fromkeys(one.hint for one in found if one.hint is not None):
        console.hint(hint)


@app.command("install")
def install_runtimes(
    names: Annotated[
        list[str],
        typer.Argument(help="Runtimes to fetch, e.g. arm64 native@1.31.1, or all.", metavar="NAME...|all"),
    ],
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Fetch runtimes with apt-get, pip and npm into a cache folder (MIXPORT_RUNTIMES), without root.

    An interrupted fetch is never taken for a whole one; the same command does it again.
    """
    console = Console(json=json, quiet=quiet)

    from mixport.validate.runtimes import ONNXRUNTIMES, cache_folder, download_mb, install, survey

    chosen = [one for name in names for one in (ONNXRUNTIMES if name == "all" else (name,))]
    size = download_mb(chosen)
    console.note(
        f"fetching about {size} MB into {cache_folder()}"
        if size
        else "nothing is missing that can be fetched"
    )
    install(chosen, progress=console)
    found = survey(chosen)
    if json:
        console.document(
            [{**asdict(one), "version": one.runtime.partition(" ")[2], "cpu": one.where} for one in found]
        )
        return
    for one in found:
        console.line(f"{one.name}: {f'{one.runtime} on {one.where}' if one.present else one.missing}")
        if one.hint is not None:
            console.hint(one.hint)
