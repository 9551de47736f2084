"""mixport targets: what is known about where a model can run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mixport.cli.console import Console
from mixport.cli.options.shared import JsonFlag
from mixport.records.errors import ExitCode

app = typer.Typer(
    help="Targets: list them, show one, check an ONNX file against one.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("list")
def list_targets(json: JsonFlag = False) -> None:
    """List the targets that mixport ships."""
    console = Console(json=json)

    from mixport.records.targets import load_target, shipped_targets

    found = [load_target(name) for name in shipped_targets()]
    if json:
        console.document(
            [{"name": target.name, "title": target.title, "sha256": target.sha256} for target in found]
        )
        return
    console.table(["name", "title"], [[target.name, target.title] for target in found])


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="Name of a shipped target, or a .toml file.", metavar="NAME")],
    json: JsonFlag = False,
) -> None:
    """Show what a target accepts: its file as it is, or every field as JSON."""
    console = Console(json=json)

    from mixport.records.targets import load_target, shipped_targets

    target = load_target(name)
    if json:
        console.document(target.model_dump(mode="json"))
        return
    console.raw(shipped_targets().get(name, Path(name)).read_text(encoding="utf-8"))


@app.command("check")
def check(
    file: Annotated[Path, typer.Argument(help="ONNX file, of any tool.", metavar="FILE.onnx")],
    target: Annotated[
        str, typer.Option(help="Name of a shipped target, or a .toml file.", metavar="NAME")
    ] = "ort-cpu",
    json: JsonFlag = False,
) -> int:
    """Check an ONNX file against a target; exit code 3 where it breaks a rule."""
    console = Console(json=json)

    from mixport.records.targets import load_target
    from mixport.validate.target_check import FAILS, check_against

    rules = load_target(target)
    decisions = check_against(file, rules)
    broken = [one for one in decisions if one.what == FAILS]
    console.table(["where", "why"], [[one.where, one.why] for one in broken])
    console.line(f"{file}: {len(decisions) - len(broken)} checks fit {rules.name}, {len(broken)} do not")
    if json:
        console.document(
            {
                "file": str(file),
                "target": rules.name,
                "fits": not broken,
                "checks": [asdict(one) for one in decisions],
            }
        )
    return ExitCode.FAILED if broken else ExitCode.DONE
