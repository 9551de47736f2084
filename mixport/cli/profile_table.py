"""A profile as tables for people, and as one document for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mixport.cli.console import Console

if TYPE_CHECKING:
    from mixport.validate.run.profile import Profile, Total

_NO_MODULE = "(no module)"


def show_profile(console: Console, found: Profile, *, inference_ms: float | None, top: int) -> None:
    """Tables of operators, modules, repeated modules and float operators, each with its `top` largest rows
    and one of the rest.

    Args:
        console: where they go.
        found: the profile.
        inference_ms: median of one inference without the profiler; None where it was not measured.
        top: rows a table.
    """
    from mixport.validate.run.attribution import merged
    from mixport.validate.run.profile import INTEGER_COMPUTE, totals

    whole = found.total_ms or 1.0
    console.line("")
    whole_run = (
        "" if inference_ms is None else f" (one inference without the profiler: {inference_ms:.3f} ms)"
    )
    console.line(
        f"profile: {len(found.nodes)} nodes, {found.total_ms:.3f} ms together{whole_run}, medians of "
        f"{found.rounds} rounds"
    )
    console.line(
        f"integer compute {found.integer_ms / whole:.1%}, everything else "
        f"{1.0 - found.integer_ms / whole:.1%}; "
        f"not attributed to a module {found.unattributed_ms / whole:.1%}"
    )
    operators = totals(found, lambda node: node.op)
    modules = totals(found, lambda node: node.module or _NO_MODULE)
    repeated = totals(found, lambda node: merged(node.module or _NO_MODULE))
    floats = totals(found, lambda node: node.op, nodes=found.float_nodes)
    _show(
        console,
        "operator",
        operators,
        top=top,
        marks={one.key: "integer compute" for one in operators if one.key in INTEGER_COMPUTE},
    )
    _show(console, "module of the float model", modules, top=top)
    if len(repeated) < len(modules):
        _show(console, "repeated modules together", repeated, top=top)
    if floats:
        _show(console, "left in float by the runtime", floats, top=top)
    else:
        console.line("")
        console.line("no operator is left in float")


def profile_document(found: Profile) -> dict[str, object]:
    """Everything that the tables show, whole, and every node."""
    from mixport.validate.run.attribution import merged
    from mixport.validate.run.profile import INTEGER_COMPUTE, totals

    whole = found.total_ms or 1.0
    return {
        "rounds": found.rounds,
        "total_ms": found.total_ms,
        "integer_compute_share": found.integer_ms / whole,
        "other_share": 1.0 - found.integer_ms / whole,
        "unattributed_share": found.unattributed_ms / whole,
        "operators": [
            {**_document("op", one), "integer_compute": one.key in INTEGER_COMPUTE}
            for one in totals(found, lambda node: node.op)
        ],
        "modules": [
            _document("module", one) for one in totals(found, lambda node: node.module or _NO_MODULE)
        ],
        "repeated_modules": [
            _document("module", one) for one in totals(found, lambda node: merged(node.module or _NO_MODULE))
        ],
        "float_operators": [
            _document("op", one) for one in totals(found, lambda node: node.op, nodes=found.float_nodes)
        ],
        "nodes": [
            {"name": node.name, "op": node.op, "module": node.module, "ms": node.ms, "data": node.data}
            for node in found.nodes
        ],
    }


def _document(name: str, total: Total) -> dict[str, object]:
    return {name: total.key, "nodes": total.count, "ms": total.ms, "share": total.share}


def _show(
    console: Console, title: str, found: Sequence[Total], *, top: int, marks: dict[str, str] | None = None
) -> None:
    known, rest = marks or {}, found[top:]
    rows: list[list[object]] = [
        [one.key, one.count, *_figures(one.ms, one.share), known.get(one.key, "")] for one in found[:top]
    ]
    if rest:
        figures = _figures(sum(one.ms for one in rest), sum(one.share for one in rest))
        rows.append([f"({len(rest)} more)", sum(one.count for one in rest), *figures, ""])
    console.line("")
    console.table([title, "nodes", "ms", "%", ""], rows)


def _figures(ms: float, share: float) -> tuple[float, float]:
    return round(ms, 3), round(100.0 * share, 1)
