"""The fusion audit: counts by kind, and the reason for every layer that stayed float."""

from __future__ import annotations

from typing import Any

import pytest

from mixport.records.targets import SessionRules, Target
from mixport.validate.interpreter.interpreter import Interpreter
from mixport.validate.run.fusion_audit import audit, integer_operator_count
from tests.unit.validate.qdq_graphs import QdqBuilder, build_network, build_transformer


def test_a_network_runs_on_integers_throughout(target: Target) -> None:
    model = build_network().build("head_sum")
    found = audit(model, policy=target.session, sites=Interpreter(model).sites)
    assert found.float_compute == () and found.float_nodes == {}
    wanted = {"QLinearConv": 3, "QLinearAdd": 1, "QLinearGlobalAveragePool": 1, "QGemm": 1}
    assert {op: found.integer_nodes[op] for op in wanted} == wanted
    assert integer_operator_count(found) == 6


def test_islands_are_counted_as_float_and_no_layer_stays_float(target: Target) -> None:
    model = build_transformer().build("logits_sum")
    found = audit(model, policy=target.session, sites=Interpreter(model).sites)
    assert found.float_compute == ()
    assert found.float_nodes == {"Add": 2, "LayerNormalization": 1, "Mul": 1, "Softmax": 1}
    assert found.integer_nodes["QGemm"] == 5 and found.integer_nodes["QLinearMatMul"] == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"zero_point": 120, "relu": True}, "zero point 120 is not 0"),
        ({"dtype": "int16"}, "output codes are int16"),
    ],
)
def test_a_layer_that_stayed_float_is_named_with_its_reason(
    options: dict[str, Any], reason: str, target: Target
) -> None:
    b = QdqBuilder()
    b.quantise("input", "x", 0.03, 128)
    result = b.layer("Conv", "x", (4, 3, 3, 3), name="features.0")
    result = b.node("Relu", [result]) if options.get("relu") else result
    model = b.build(
        b.qdq(result, "y", 0.2, options.get("zero_point", 0), dtype=options.get("dtype", "uint8"))
    )
    found = audit(model, policy=target.session, sites=["x", "y"])
    (decision,) = found.float_compute
    assert decision.where == "features.0" and reason in decision.why


def test_an_integer_operator_in_the_place_of_a_float_one_is_named(target: Target) -> None:
    b = QdqBuilder()
    # sigmoid(0) lies on the boundary of two codes: no proof that every runtime rounds it alike, so it is an
    # island.
    model = b.build(b.qdq(b.node("Sigmoid", [b.qdq("input", "x", 0.03, 128)]), "gate", 1 / 255))
    (decision,) = audit(model, policy=target.session, sites=["x", "gate"]).fused_islands
    assert decision.where == "gate" and decision.what.startswith("QLinearSigmoid")


def test_without_optimisation_every_layer_stays_float() -> None:
    model = build_network().build("head_sum")
    found = audit(
        model, policy=SessionRules(optimization_level="disabled", threads=1), sites=Interpreter(model).sites
    )
    assert [d.where for d in found.float_compute] == ["stem", "branch", "depthwise", "head"]
    assert "every condition that mixport knows is met" in found.float_compute[0].why


def test_quantisers_that_merge_only_in_the_deployed_graph_are_reported(target: Target) -> None:
    b = QdqBuilder()
    model = b.build(b.node("Neg", [b.qdq(b.qdq("input", "first", 0.03, 128), "second", 0.11, 120)]))
    found = audit(model, policy=target.session, sites=["first", "second"])
    (decision,) = found.float_compute
    assert (
        decision.where == "instrumented graph"
        and "QuantizeLinear: 1 deployed, 2 instrumented" in decision.why
    )


def test_the_audit_leaves_no_file_behind(
    target: Target, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    model = build_network().build("head_sum")
    audit(model, policy=target.session, sites=["join"])
    assert list(tmp_path.iterdir()) == []
