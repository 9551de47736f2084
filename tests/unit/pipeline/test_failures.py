"""What makes a build fail: mismatches, gates, and proofs that do not hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mixport.pipeline import build_target as pipeline


def test_a_broken_bound_fails_the_build_and_names_node_and_repair(records: Any) -> None:
    violation = {
        "node": "conv_1",
        "site": "conv",
        "bound": "pair saturation",
        "found": "3 pairs",
        "repair": "7-bit weights",
    }
    exact = replace(records.validation, verdict="exact", divergences=(), proofs={"violations": [violation]})
    failures = pipeline._failures(exact, ())  # pyright: ignore[reportPrivateUsage]
    assert failures == ("pair saturation at node conv_1: 3 pairs; repair: 7-bit weights",)
    assert pipeline._failures(replace(exact, proofs={}), ()) == ()  # pyright: ignore[reportPrivateUsage]
