"""mixport runtimes: what can validate here."""

from __future__ import annotations

from importlib import metadata

import typer

from mixport.commands.flags import JsonFlag
from mixport.console import Console
from mixport.environment import cpu_name

app = typer.Typer(help="Runtimes: what can validate here.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_runtimes(json: JsonFlag = False) -> None:
    """List the runtimes that can validate on this machine: native only, in this version."""
    console = Console(json=json)
    found = [{"name": "native", "runtime": "onnxruntime", "version": metadata.version("onnxruntime"), "cpu": cpu_name()}]
    if json:
        console.document(found)
        return
    console.table(["name", "runtime", "version", "cpu"], [list(item.values()) for item in found])
