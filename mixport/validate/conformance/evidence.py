"""Join what is proved of a file with what the kit measured of the forms it uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mixport.validate.conformance.measured import (
    ConformanceResult,
    exact_forms,
    form_evidence,
    shipped_results,
)
from mixport.validate.conformance.used_forms import UsedForm


def with_evidence(
    proofs: Mapping[str, Any],
    used: Sequence[UsedForm],
    *,
    portable: bool,
    results: Sequence[ConformanceResult] | None = None,
) -> dict[str, Any]:
    """The proofs of a file, with the measurements added.

    Every node record gets its `form`. A node that is exact only as far as measured gets the evidence as part
    of its reason, or, where a runtime differs, becomes `not portable`. Such a node breaks a portable target's
    promise and is added to `violations`.

    Args:
        proofs: as `mixport.validate.proof.prove` gives them.
        used: forms of the same file.
        portable: as in the target.
        results: of the runtimes that count; the shipped ones by default.
    """
    measured = shipped_results() if results is None else tuple(results)
    exact = exact_forms(measured)
    forms = {one.node: one.form for one in used}
    nodes = [_node(record, forms.get(record["node"]), exact, measured) for record in proofs["nodes"]]
    broken = [
        _violation(node)
        for node in nodes
        if node["portability"] == "not portable" and node["form"] not in exact
    ]
    named = {one["node"] for one in proofs["violations"]}
    return {
        **proofs,
        "nodes": nodes,
        "portability": dict(Counter(node["portability"] for node in nodes)),
        "forms": dict(sorted(Counter(one.form for one in used if one.form is not None).items())),
        "violations": [
            *proofs["violations"],
            *(one for one in broken if portable and one["node"] not in named),
        ],
    }


def _node(
    record: Mapping[str, Any], form: str | None, exact: frozenset[str], results: Sequence[ConformanceResult]
) -> dict[str, Any]:
    node = {**record, "form": form}
    if form is None or record["portability"] != "exact on measured runtimes":
        return node
    node["why"] = f"{record['why']}; {form_evidence(form, results).sentence()}"
    if form not in exact:
        node["portability"] = "not portable"
    return node


def _violation(node: Mapping[str, Any]) -> dict[str, str]:
    return {
        "node": node["node"],
        "site": node["site"],
        "bound": "portable forms",
        "found": node["why"],
        "repair": "build again: portable lowering has a form for it; or --no-portable",
    }
