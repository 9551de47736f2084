"""mixport conformance: which operator forms are exact on a runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixport.cli.console import Console
from mixport.cli.options.shared import JsonFlag, QuietFlag
from mixport.records.errors import BadInputError, BadOptionError, ExitCode

if TYPE_CHECKING:
    from mixport.validate.conformance.kit import Kit
    from mixport.validate.conformance.measured import ConformanceResult


def conformance(
    runtime: Annotated[
        list[str] | None,
        typer.Option(help="Repeatable: runtimes to measure.", metavar="NAME", show_default="native"),
    ] = None,
    form: Annotated[
        list[str] | None,
        typer.Option(
            help="Repeatable: only forms whose names start so.", metavar="PREFIX", show_default="all"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write the results: FILE.json of one runtime, or a folder for NAME-VERSION.json.",
            metavar="PATH",
        ),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the forms and stop.")] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> int:
    """Run small graphs of every operator form on a runtime, and say which forms are exact there.

    Exit code 3 where a form that the portable lowering writes differs; other forms may differ.
    """
    console = Console(json=json, quiet=quiet)

    from mixport.arithmetic.definitions import ONNXRUNTIME
    from mixport.records.targets import load_target
    from mixport.validate.conformance.catalogue import choose
    from mixport.validate.conformance.kit import make_kit, run_kit
    from mixport.validate.conformance.measured import exact_forms, write_result
    from mixport.validate.runtimes import open_runtimes

    forms = choose(form or ())
    if list_:
        _list(console, [(one.name, one.family, one.emitted, one.about) for one in forms])
        return ExitCode.DONE
    opened = open_runtimes(runtime or ("native",), arithmetic=ONNXRUNTIME.name)
    _make_folder(out, runtimes=len(opened))
    kit = make_kit(forms, progress=console)
    console.note(f"{kit.graphs} graphs, {kit.values} values, {len(kit.forms)} forms")
    results: list[ConformanceResult] = []
    with console.track("running graphs", total=len(opened), unit="runtimes") as advance:
        for one in opened:
            console.note(f"running on {one.name}")
            results.append(run_kit(kit, one, policy=load_target("ort-cpu").session))
            advance(1)
    if out is not None:
        for result in results:
            file = out if out.suffix == ".json" else out / result.file_name
            write_result(file, result)
            console.note(f"wrote {file}")
    differing = _differing(kit, results)
    if json:
        exact = exact_forms(results)
        console.document(
            {
                "graphs": kit.graphs,
                "exact": sorted(exact),
                "failed": differing,
                "results": [result.document() for result in results],
            }
        )
    _show(console, kit, results)
    for name in differing:
        console.error(f"form {name} differs, and the portable lowering writes it")
    if differing:
        console.hint(f"mixport conformance --form {differing[0]} --json shows the first difference")
    return ExitCode.FAILED if differing else ExitCode.DONE


def _make_folder(out: Path | None, *, runtimes: int) -> None:
    """The folder that the results go to is made now: a run takes minutes."""
    if out is None:
        return
    if out.suffix == ".json" and runtimes > 1:
        raise BadOptionError(
            f"--out is {out}, and there are {runtimes} runtimes: allowed is a folder",
            hint=f"--out {out.with_suffix('')}",
        )
    try:
        (out.parent if out.suffix == ".json" else out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInputError(
            f"--out {out} cannot be written: {error.strerror or error}", hint="choose another --out"
        ) from error


def _list(console: Console, rows: list[tuple[str, str, bool, str]]) -> None:
    if console.json:
        console.document(
            [
                {"name": name, "family": family, "emitted": emitted, "about": about}
                for name, family, emitted, about in rows
            ]
        )
        return
    console.table(
        ["form", "family", "portable lowering", "about"],
        [[n, family, "writes it" if emitted else "", about] for n, family, emitted, about in rows],
    )


def _differing(kit: Kit, results: list[ConformanceResult]) -> list[str]:
    """Forms that the portable lowering writes, and that some runtime does not compute exactly."""
    return [
        form.name
        for form, _ in kit.forms
        if form.emitted and any(not result.forms[form.name].exact for result in results)
    ]


def _show(console: Console, kit: Kit, results: list[ConformanceResult]) -> None:
    families = dict.fromkeys(form.family for form, _ in kit.forms)
    rows: list[list[object]] = []
    for family in families:
        names = [form.name for form, _ in kit.forms if form.family == family]
        graphs = sum(len(cases) for form, cases in kit.forms if form.family == family)
        cells = [_count(sum(result.forms[name].exact for name in names), len(names)) for result in results]
        rows.append([family, len(names), graphs, *cells])
    columns = [f"{result.name} ({result.runtime.version})" for result in results]
    console.table(["family", "forms", "graphs", *columns], rows)
    differing = [
        form.name for form, _ in kit.forms if any(not result.forms[form.name].exact for result in results)
    ]
    if differing:
        console.line("")
        console.table(
            ["form that differs", *columns],
            [[name, *(_cell(result, name) for result in results)] for name in differing],
        )


def _count(exact: int, total: int) -> str:
    return "all exact" if exact == total else f"{exact} exact"


def _cell(result: ConformanceResult, form: str) -> str:
    found = result.forms[form]
    if found.exact:
        return "exact"
    refused = f", {found.refused} of {found.cases} graphs refused" if found.refused else ""
    return f"{found.mismatches} of {found.values} differ{refused}"
