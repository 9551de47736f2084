"""Proofs and measurements joined: evidence where a proof ends, a violation where a portable file uses a form
that differs.
"""

from __future__ import annotations

from typing import Any

from mixport.validate.conformance.evidence import with_evidence
from mixport.validate.conformance.measured import exact_forms, shipped_results
from mixport.validate.conformance.used_forms import UsedForm


def proofs(**classes: str) -> dict[str, Any]:
    nodes = [
        {"node": name, "op": "Op", "site": name, "portability": kind, "why": "because"}
        for name, kind in classes.items()
    ]
    return {"nodes": nodes, "violations": [], "portability": {}}


def used(node: str, form: str | None) -> UsedForm:
    return UsedForm(node=node, op="Op", output=node, form=form)


def test_evidence_is_added_where_a_proof_ends_and_only_there() -> None:
    found = with_evidence(
        proofs(a="exact by proof", b="exact on measured runtimes"),
        [used("a", "conv.w8"), used("b", "mul")],
        portable=True,
    )
    a, b = found["nodes"]
    assert (a["form"], a["why"]) == ("conv.w8", "because")
    assert b["why"].startswith("because; mul: exact on native") and "arm64" in b["why"]
    assert found["violations"] == []
    assert found["portability"] == {"exact by proof": 1, "exact on measured runtimes": 1}
    assert found["forms"] == {"conv.w8": 1, "mul": 1}


def test_a_form_that_a_runtime_computes_otherwise_breaks_a_portable_file_and_no_other() -> None:
    form = "conv.w8.pair-saturation"
    assert form not in exact_forms(shipped_results())
    for portable in (True, False):
        found = with_evidence(proofs(a="exact on measured runtimes"), [used("a", form)], portable=portable)
        assert found["nodes"][0]["portability"] == "not portable"
        assert "differs on x64-avx2" in found["nodes"][0]["why"]
        assert [(one["node"], one["bound"]) for one in found["violations"]] == (
            [("a", "portable forms")] if portable else []
        )


def test_a_node_that_a_proof_already_blames_is_not_blamed_twice() -> None:
    given = proofs(a="not portable")
    given["violations"] = [{"node": "a", "site": "a", "bound": "pair saturation", "found": "", "repair": ""}]
    found = with_evidence(given, [used("a", "conv.w8.pair-saturation")], portable=True)
    assert found["violations"] == given["violations"]


def test_operators_outside_the_kit_stay_as_they_are() -> None:
    found = with_evidence(proofs(a="float"), [used("a", None)], portable=True)
    assert found["nodes"][0]["portability"] == "float"
    assert found["violations"] == []
