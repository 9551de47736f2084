"""The claim, word by word: numbers come from the evidence, and the first divergence takes its place."""

from __future__ import annotations

from typing import Any

import pytest

from mixport.records.runtime import RuntimeInfo
from mixport.records.targets import SessionRules
from mixport.records.validation_report import Divergence, FusionAudit, RuntimeResult
from mixport.validate.claim import claim_of
from mixport.validate.crafted.check_units import SiteChecks
from mixport.validate.run.compare import Comparison

INFO = RuntimeInfo(name="onnxruntime", version="1.32.0", cpu="abacus")
WHERE = "onnxruntime 1.32.0 (abacus), optimisation level all, 1 thread"


def claim(**changes: Any) -> str:
    fields: dict[str, Any] = {
        "native": Comparison(names=frozenset({"stem", "output"}), values=640),
        "simulated": False,
        "checks": SiteChecks(),
        "audit": FusionAudit(integer_nodes={}, float_nodes={}, float_compute=()),
        "info": INFO,
        "policy": SessionRules(optimization_level="all", threads=1),
        "islands": (),
        "divergences": (),
    }
    return claim_of(**{**fields, **changes})


def test_an_empty_claim_counts_nothing_twice() -> None:
    assert claim() == (
        "All 640 values of 2 tensors and 0 values of crafted operator checks are the same in "
        f"the integer interpreter, {WHERE}; 0 integer operators at run time, 0 float islands excluded"
    )


def test_every_number_is_that_of_the_evidence() -> None:
    counts = {
        "conv: near-tie": {"sites": 1, "values": 100, "mismatches": 0},
        "add: all-pairs": {"sites": 2, "values": 65536, "mismatches": 0},
    }
    # Codes that only move, and float operators, are no integer operators.
    audit = FusionAudit(
        integer_nodes={"QLinearConv": 3, "QGemm": 1, "NhwcMaxPool": 2, "Reshape": 5},
        float_nodes={"Softmax": 7},
        float_compute=(),
    )
    found = claim(
        simulated=True,
        checks=SiteChecks(counts=counts),
        audit=audit,
        islands=("norm (LayerNormalization)",),
        policy=SessionRules(optimization_level="basic", threads=2),
    )
    assert "2 tensors and 65636 values of crafted operator checks" in found
    assert (
        "the integer interpreter, the simulation and onnxruntime 1.32.0 (abacus), "
        "optimisation level basic, 2 threads; " in found
    )
    assert found.endswith("; 4 integer operators at run time, 1 float island excluded")


@pytest.mark.parametrize(("names", "words"), [("a", "1 tensor and"), ("abc", "3 tensors and")])
def test_one_is_singular(names: str, words: str) -> None:
    assert words in claim(native=Comparison(names=frozenset(names), values=9))


def test_other_runtimes_are_listed_in_their_order() -> None:
    elsewhere = [
        RuntimeResult(name=name, version="1", cpu=cpu, tensors=2, values=values, mismatches=0)
        for name, cpu, values in (("wasm", "node", 5), ("arm64", "max", 6))
    ]
    assert f"{WHERE}; the same on wasm (1, node: 5 values), arm64 (1, max: 6 values); 0 integer" in claim(
        elsewhere=elsewhere
    )


def test_the_first_divergence_is_the_claim() -> None:
    divergences = [
        Divergence(site=site, index=(3, 0), expected=7.0, got=got, executor="wasm", inputs="near-tie")
        for site, got in (("stem", 8.5), ("output", 9.0))
    ]
    assert claim(divergences=divergences) == (
        f"Codes differ: first at stem[3, 0] on near-tie, expected 7, wasm gave 8.5; {WHERE}"
    )


def test_a_divergence_without_a_place_shows_empty_brackets() -> None:
    whole = Divergence(site="stem", index=(), expected=640, got=0, executor="x", inputs="images")
    assert claim(divergences=[whole]).startswith("Codes differ: first at stem[] on images, expected 640, x")
