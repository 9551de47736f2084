"""The tables of docs/conformance.md, from the result files that mixport ships.

python -m tests.benchmarks.conformance_table            writes them into docs/conformance.md
python -m tests.benchmarks.conformance_table --print    prints them
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from mixport.conformance.catalogue import FORMS
from mixport.form_evidence import ConformanceResult, shipped_results

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"
BEGIN, END = "<!-- tables: python -m tests.benchmarks.conformance_table -->", "<!-- end of tables -->"


def tables(results: Sequence[ConformanceResult]) -> str:
    """All tables as Markdown."""
    names = [result.name for result in results]
    who = _table(["runtime", "version", "processor"], ([r.name, f"{r.runtime.name} {r.runtime.version}", r.runtime.cpu] for r in results))
    written = _table(
        ["form", "what", "values", *names],
        (
            [f"`{f.name}`", f.about, f"{results[0].forms[f.name].values:,}", *(_cell(r, f.name) for r in results)]
            for f in FORMS
            if f.emitted
        ),
    )
    others = _table(
        ["form", "what", "values", *names],
        (
            [f"`{f.name}`", f.about, f"{results[0].forms[f.name].values:,}", *(_cell(r, f.name) for r in results)]
            for f in FORMS
            if not f.emitted
        ),
    )
    graphs = sum(form.cases for form in results[0].forms.values())
    values = sum(form.values for form in results[0].forms.values())
    head = f"{len(FORMS)} forms, {graphs} graphs, {values:,} values a runtime; mixport {results[0].mixport}."
    return "\n\n".join(
        [
            head,
            who,
            "### Forms that the portable lowering writes",
            "Mismatches, over the values compared.",
            written,
            "### Other forms",
            others,
        ]
    )


def updated(document: str) -> str:
    """The document with fresh tables."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables(shipped_results())}\n\n{END}{after}"


def _cell(result: ConformanceResult, form: str) -> str:
    found = result.forms[form]
    return f"{found.refused} refused" if found.refused else f"{found.mismatches:,}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Write or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", help="print the tables only")
    if parser.parse_args().print:
        print(tables(shipped_results()))
        return
    DOCUMENT.write_text(updated(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
