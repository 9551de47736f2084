"""What a file's proofs say: plain data, classes with reasons, violations with node and repair."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from mixport.records.graph_facts import FileFacts, LayerFacts, NodeFacts, OutputCodes
from mixport.validate.proof.adds import add_fault
from mixport.validate.proof.prove import prove

Make = Any


def node(site: str, form: Any = "layer", **changes: Any) -> NodeFacts:
    return NodeFacts(**{"node": f"{site}.node", "op": "Conv", "site": site, "form": form, **changes})


def adding(a: float, b: float, y: float, zero_points: tuple[int, int, int] = (0, 0, 0)) -> NodeFacts:
    return node("sum", "add", op="Add", scales=(a, b, y), zero_points=zero_points)


def proved(*layers: LayerFacts, nodes: tuple[NodeFacts, ...] = (), pair_limit: int | None = None) -> Any:
    """As it stands in the manifest: through JSON."""
    facts = FileFacts(
        nodes=(*(node(layer.site) for layer in layers), *nodes), layers=layers, pair_limit=pair_limit
    )
    return json.loads(json.dumps(prove(facts)))


def test_proofs_are_plain_data(layer: Make) -> None:
    good = layer([[1, 2]], site="good", left=(0, 15, 0))
    bad = layer([[127, 127]], site="bad")
    proofs = proved(good, bad)
    assert proofs["int32_accumulators"]["holds"] and proofs["int32_accumulators"]["largest_site"] == "bad"
    assert proofs["int16_pairs"] == {"holds": False, "sites": 2, "exceptions": ["bad"], "limit": 32767}
    assert (
        proofs["requantisation"]["holds"] and proofs["requantisation"]["sums"] == 3 * 15 + 1 + 254 * 255 + 1
    )
    assert [site["site"] for site in proofs["sites"]] == ["good", "bad"]
    assert [one["portability"] for one in proofs["nodes"]] == ["exact by proof", "not portable"]
    assert proofs["violations"] == []  # nothing was asked of the pairs
    assert proved()["int32_accumulators"]["holds"] is True


def test_a_pair_beyond_what_the_target_asks_is_a_violation(layer: Make) -> None:
    proofs = proved(layer([[127, 127], [1, 1]], site="conv"), pair_limit=32767)
    [violation] = proofs["violations"]
    assert (violation["node"], violation["site"], violation["bound"]) == ("s.node", "conv", "pair saturation")
    assert "channel 0, weights 0 and 1" in violation["found"] and "7-bit weights" in violation["repair"]


def test_sums_beyond_int32_are_a_violation(layer: Make) -> None:
    [violation] = proved(layer([[1]], bias=np.array([2**31 - 1]), left=(0, 1, 0), y=None))["violations"]
    assert violation["bound"] == "int32 accumulator" and "2147483648" in violation["found"]


def test_a_step_that_float32_puts_elsewhere_weakens_the_class(layer: Make) -> None:
    rng = np.random.default_rng(0)
    weights = rng.integers(-60, 61, (16, 300))
    scales = {"x_scale": 0.0123, "w_scale": rng.uniform(0.004, 0.006, 16).astype(np.float32)}
    inexact = layer(weights, y=OutputCodes(scale=0.7, zero_point=128, low=0, high=255), **scales)
    proofs = proved(inexact)
    assert proofs["requantisation"]["exceptions"] == ["s"]
    assert proofs["nodes"][0]["portability"] == "exact on measured runtimes"
    assert proofs["violations"] == []


@pytest.mark.parametrize(
    ("form", "portability"),
    [
        ("table", "exact by proof"),
        ("movement", "exact by proof"),
        ("quantise", "exact by proof"),
        ("requantise", "exact by proof"),
        ("elementwise", "exact by proof"),
        ("average", "exact on measured runtimes"),
        ("multiply", "exact on measured runtimes"),
        ("float", "float"),
        ("product", "exact on measured runtimes"),
    ],
)
def test_every_form_has_a_class_and_a_reason(form: str, portability: str) -> None:
    proofs = proved(nodes=(node("x", form),))
    assert proofs["portability"] == {portability: 1}
    assert proofs["nodes"][0]["why"]


def test_a_layer_with_float_output_is_exact_where_it_was_measured(layer: Make) -> None:
    proofs = proved(layer([[1, 2]], y=None))
    assert proofs["nodes"][0]["portability"] == "exact on measured runtimes"
    assert proofs["sites"][0]["requantisation"] is None


def test_adds_with_integer_ratios_are_exact_whatever_their_zero_points() -> None:
    assert add_fault(adding(0.5, 0.25, 0.25, (3, 128, 7))) == ""
    assert proved(nodes=(adding(0.5, 0.25, 0.25),))["add_ratios"] == {
        "holds": True,
        "sites": 1,
        "exceptions": [],
    }


@pytest.mark.parametrize("zero_point", [0, 7])
def test_a_fractional_ratio_is_a_violation_and_odd_zero_points_make_it_worse(zero_point: int) -> None:
    proofs = proved(nodes=(adding(0.5, 0.375, 0.25, (0, 0, zero_point)),))
    [violation] = proofs["violations"]
    assert (violation["node"], violation["bound"]) == ("sum.node", "add ratio")
    assert "1.5 times the output scale" in violation["found"]
    assert ("odd" in violation["found"]) is (zero_point == 7)
    assert proofs["nodes"][0]["portability"] == "not portable"


def test_ratios_beyond_float32_are_found() -> None:
    assert "beyond 2^24" in add_fault(adding(2.0**17, 1.0, 1.0))


def test_what_the_file_gets_wrong_is_told_at_its_node(layer: Make) -> None:
    facts = FileFacts(
        nodes=(node("s", wrong="scale of bias b is not x_scale * w_scale"),), layers=(layer([[1]]),)
    )
    proofs = prove(facts)
    assert proofs["violations"][0]["node"] == "s.node"
    assert (
        "scale of bias b" in proofs["violations"][0]["found"]
        and "scale of bias b" in proofs["nodes"][0]["why"]
    )
