"""The result files that mixport ships, and the tables of docs/conformance.md made of them.

python -m tests.benchmarks.conformance_table              writes the tables into docs/conformance.md python -m
tests.benchmarks.conformance_table --print      prints them python -m tests.benchmarks.conformance_table
--measure    fetches what is missing, runs the kit on every runtime and version, then writes
                                                          the result files and the tables; minutes, on x64
                                                          with VNNI
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from mixport.cli.program import run
from mixport.validate.conformance.catalogue import FORMS
from mixport.validate.conformance.measured import ConformanceResult, read_result, shipped_results
from mixport.validate.runtimes.pins import OLDER_ONNXRUNTIME, ONNXRUNTIME, ONNXRUNTIME_WEB

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT, RESULTS = (
    ROOT / "docs" / "conformance.md",
    ROOT / "mixport" / "validate" / "conformance" / "results",
)
MEASURED = (
    *(
        f"{name}@{version}"
        for name in ("native", "x64-avx2", "arm64")
        for version in (ONNXRUNTIME, *OLDER_ONNXRUNTIME)
    ),
    f"wasm@{ONNXRUNTIME_WEB}",
)
"""Runtimes and versions whose results are part of mixport."""
BEGIN, END = "<!-- tables: python -m tests.benchmarks.conformance_table -->", "<!-- end of tables -->"


def tables(results: Sequence[ConformanceResult]) -> str:
    """All tables as Markdown."""
    names = list(dict.fromkeys(result.name for result in results))
    who = _table(
        ["runtime", "version", "processor"],
        ([r.name, f"{r.runtime.name} {r.runtime.version}", r.runtime.cpu] for r in results),
    )

    def rows(*, emitted: bool) -> str:
        lines: list[list[str]] = []
        for form in FORMS:
            if form.emitted is emitted:
                cells = [
                    _cell([result for result in results if result.name == name], form.name) for name in names
                ]
                lines.append(
                    [f"`{form.name}`", form.about, f"{results[0].forms[form.name].values:,}", *cells]
                )
        return _table(["form", "what", "values", *names], lines)

    graphs = sum(form.cases for form in results[0].forms.values())
    values = sum(form.values for form in results[0].forms.values())
    head = f"{len(FORMS)} forms, {graphs} graphs, {values:,} values a runtime; mixport {results[0].mixport}."
    return "\n\n".join(
        [
            head,
            who,
            "### Forms that the portable lowering writes",
            (
                "Mismatches, over the values compared. One figure stands for all versions of a runtime "
                "that have the same."
            ),
            rows(emitted=True),
            "### Other forms",
            rows(emitted=False),
        ]
    )


def updated(document: str) -> str:
    """The document with fresh tables."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables(shipped_results())}\n\n{END}{after}"


def measure() -> int:
    """Write every result file again, and remove those of versions that are not measured any more. Returns the
    command's exit code.
    """
    if run(["runtimes", "install", *MEASURED]) != 0:
        return 1
    code = run(
        ["conformance", *(word for name in MEASURED for word in ("--runtime", name)), "--out", str(RESULTS)]
    )
    for path in sorted(RESULTS.glob("*.json")):
        result = read_result(path)
        if f"{result.name}@{result.runtime.version}" not in MEASURED:
            path.unlink()
    return code


def _cell(results: Sequence[ConformanceResult], form: str) -> str:
    """One runtime's results: one figure, or one for each version where they differ."""
    figures = {result.runtime.version: _figure(result, form) for result in results}
    if len(set(figures.values())) == 1:
        return next(iter(figures.values()))
    return ", ".join(f"{figure} ({version})" for version, figure in figures.items())


def _figure(result: ConformanceResult, form: str) -> str:
    found = result.forms[form]
    return f"{found.refused} refused" if found.refused else f"{found.mismatches:,}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Measure, write or print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--print", action="store_true", help="print the tables only")
    parser.add_argument(
        "--measure", action="store_true", help="run the kit on every runtime and version first"
    )
    arguments = parser.parse_args()
    if arguments.print:
        print(tables(shipped_results()))
        return
    code = measure() if arguments.measure else 0
    DOCUMENT.write_text(updated(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(code)


if __name__ == "__main__":
    main()
