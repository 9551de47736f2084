"""describe() and check_against(): what people and CI read about a file."""

from __future__ import annotations

import numpy as np
import pytest

from mixport.records.targets import Target, load_target
from mixport.validate.inspect import NodeDescription, check_against, describe
from mixport.validate.proof.prove import prove
from mixport.validate.target_check import FAILS
from tests.unit.validate.qdq_graphs import QdqBuilder, build_network, build_transformer


def described(model: object) -> dict[str, NodeDescription]:
    return {d.name: d for d in describe(model, prove=prove)}  # type: ignore[arg-type]


def test_one_line_for_each_fused_operator() -> None:
    found = describe(build_network().build("head_sum"))
    operators = (
        "QuantizeLinear Conv QuantizeLinear Conv Add QuantizeLinear Conv GlobalAveragePool Flatten Gemm "
        "Identity"
    )
    assert [d.op for d in found] == operators.split()
    assert all(d.accumulator_bound is None and d.portability is None for d in found)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_bits_and_bounds(bits: int) -> None:
    found = described(build_network(bits=bits).build("head_sum"))
    branch = found["branch"]
    assert (branch.op, branch.output, branch.compute) == ("Conv", "branch", "integer")
    assert branch.portability in ("exact by proof", "exact on measured runtimes")
    assert (branch.weight_bits, branch.activation_bits) == (bits, 4)
    assert (
        branch.accumulator_bound is not None
        and 0 < branch.accumulator_bound <= 72 * 15 * 2 ** (bits - 1) + 300
    )
    assert found["stem"].weight_bits == 8 and found["stem"].activation_bits == 8
    assert found["stem"].portability == "not portable" and "x64 without VNNI" in found["stem"].why
    assert found["join"].accumulator_bound is None


def test_islands_and_ieee_nodes_are_told_apart() -> None:
    found = described(build_transformer().build("logits_sum"))
    assert found["norm1"].portability == found["softmax"].portability == "float"
    assert "not bit-portable" in found["softmax"].why
    assert found["residual"].portability == "exact by proof" and found["residual"].compute == "float"
    assert found["mlp.table"].portability == "exact by proof"
    assert found["context"].accumulator_bound == 16 * 255 * 128
    assert found["scores"].compute == "integer"


def test_a_network_fits_its_target(target: Target) -> None:
    found = check_against(build_network().build("head_sum"), target)
    assert all(d.what == "fits" for d in found)
    assert {"opset", "IR version", "input input", "node stem", "weight branch.weight"} <= {
        d.where for d in found
    }


def test_offences_are_named(target: Target) -> None:
    plain = load_target("onnx-int8")
    failing = [d for d in check_against(build_network().build("head_sum"), plain) if d.what == FAILS]
    assert {d.where for d in failing} == {"input input", "weight branch.weight", "weight depthwise.weight"}
    assert "int4" in next(d for d in failing if d.where == "weight branch.weight").why
    model = build_network().build("head_sum")
    model.opset_import[0].version = 99
    model.ir_version = 77
    assert [d.where for d in check_against(model, target) if d.what == FAILS] == ["opset", "IR version"]


def test_wide_codes_scales_and_zero_points_follow_the_target(target: Target) -> None:
    strict = target.model_copy(
        update={
            "activations": target.activations.model_copy(update={"zero_point": "zero", "stream_bits": (8,)}),
            "scale": target.scale.model_copy(update={"form": "power-of-two"}),
        }
    )
    b = QdqBuilder()
    b.quantise("input", "x", 0.03, 128)
    stream = b.quantise(b.node("Neg", ["input"]), "stream", 0.25, 0, dtype="int16")
    left = b.qdq(b.layer("Conv", "x", (3, 3, 1, 1), name="conv"), "y", 0.5, 0)
    model = b.build(b.node("Add", [left, b.dequantise(stream)]))
    failing = {(d.where, d.why.split(",")[0]) for d in check_against(model, strict) if d.what == FAILS}
    scales = {one for one in failing if one[0].startswith("scale ")}
    assert failing - scales == {("node conv", "zero point 128 of x"), ("site stream", "codes are int16")}
    # Those of the input, of the weight and of its bias; 0.25 and 0.5 are powers of two.
    assert len(scales) == 3 and str(float(np.float32(0.03))) in {why for _, why in scales}
