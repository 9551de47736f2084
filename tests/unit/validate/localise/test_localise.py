"""From a divergence to node, codes, sum and cause, with evidence that was changed on purpose."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from mixport.records.validation_report import Divergence, Localisation, Operand
from mixport.validate.interpreter.interpreter import Interpreter
from mixport.validate.localise.localise import Evidence, localise
from mixport.validate.run.compare import compare
from tests.unit.validate.qdq_graphs import QdqBuilder, build_network

f32 = np.float32
X = (np.random.default_rng(1).normal(size=(2, 3, 8, 8)) * 2).astype(f32)


def placed(model: onnx.ModelProto, site: str, change: Any, *, refused: str = "") -> Localisation:
    """Localise what `change` makes of one tensor's copy."""
    execution = Interpreter(model, watch=[site]).run(X)
    expected = dict(execution.codes)
    got = {**expected, site: change(expected[site].copy())}
    first = compare(expected, got, order=[site], executor="planted", inputs="images").first
    assert first is not None
    evidence = Evidence(feeds={"input": X}, expected=expected, got=got, refused=refused)
    return localise(model, first, evidence)


def plus(index: tuple[int, ...], difference: int) -> Any:
    def change(codes: np.ndarray) -> np.ndarray:
        codes[index] = codes[index] + difference
        return codes

    return change


@pytest.fixture(scope="module")
def network() -> onnx.ModelProto:
    return build_network().build("head_sum")


def test_a_layer_is_placed_with_its_sum(network: onnx.ModelProto) -> None:
    found = placed(network, "branch", plus((1, 2, 3, 4), 40))
    execution = Interpreter(network).run(X)
    code = int(execution.codes["branch"][1, 2, 3, 4])
    assert (found.site, found.index, found.node, found.op) == ("branch", (1, 2, 3, 4), "branch", "Conv")
    assert (found.executor, found.inputs, found.cause) == ("planted", "images", "other-data")
    assert (found.expected, found.got) == (code, code + 40)
    assert found.operands == (Operand(name="stem.requantised", code=None, count=72),)
    assert found.accumulator is not None and found.exact is not None
    assert np.clip(np.rint(found.exact), 0, 255) == code
    assert f"branch[1, 2, 3, 4] on images: expected {code}, got {code + 40}; node branch (Conv) reads 72" in (
        found.text()
    )


def test_an_input_that_is_no_site_is_watched(network: onnx.ModelProto) -> None:
    # The pooled codes are flattened before the last layer reads them.
    execution = Interpreter(network).run(X)
    assert execution.output is not None
    exact = float(execution.output[0, 4])
    divergence = Divergence(site="head_sum", index=(0, 4), expected=exact, got=9.0, executor="e", inputs="i")
    evidence = Evidence(feeds={"input": X}, expected={}, got={})
    found = localise(network, divergence, evidence)
    assert (found.node, found.op, found.cause) == ("head", "Gemm", "unfused-float")
    assert found.exact == pytest.approx(divergence.expected, rel=1e-6)


def test_a_refusal_and_a_missing_tensor_need_no_element(network: onnx.ModelProto) -> None:
    found = placed(network, "branch", plus((0, 0, 0, 0), 1), refused="opset too new")
    assert (found.cause, found.accumulator, found.exact) == ("refused", None, None)
    assert found.operands == (Operand(name="stem.requantised", code=None, count=0),)
    found = placed(network, "branch", lambda codes: codes[:, :, :, :3])
    assert (found.cause, found.index, found.node) == ("shape", (), "branch")
    assert "384 values instead of 1024" in found.explanation


def test_a_swapped_channel_is_found_in_the_whole_tensor(network: onnx.ModelProto) -> None:
    found = placed(network, "stem", lambda codes: codes[:, [1, 0, *range(2, 8)]])
    assert found.cause == "swapped-channel" and "channel 0 holds what channel 1" in found.explanation


def test_the_first_quantiser_rounds_the_input(network: onnx.ModelProto) -> None:
    found = placed(network, "input_codes", plus((0, 1, 2, 3), 1))
    assert (found.op, found.cause, found.exact) == ("QuantizeLinear", "float-operators", None)
    assert "(QuantizeLinear of the input), off by 1" in found.explanation
    assert found.operands == (Operand(name="input", code=None, count=0),)


def test_float_operators_between_codes_are_listed() -> None:
    b = QdqBuilder()
    b.quantise("input", "x", 0.25, 3, dtype="int16")
    doubled = b.node("Mul", [b.dequantise("x"), b.constant(f32(1.5))], name="grow")
    moved = b.node("Transpose", [b.node("Neg", [doubled], name="turn")], perm=[0, 1, 3, 2])
    model = b.build(b.qdq(moved, "y", 0.5, 0, dtype="int16"))
    found = placed(model, "y", plus((1, 0, 2, 5), 3))
    assert found.cause == "float-operators" and "(Mul grow, Neg turn), off by 3" in found.explanation
    code = int(Interpreter(model).run(X).codes["x"][1, 0, 2, 5])
    assert found.operands == (Operand(name="x", code=code, count=1),)


def test_a_float_add_off_by_one_is_a_fused_multiply_add() -> None:
    b = QdqBuilder()
    left = b.qdq("input", "left", 0.01, 3, dtype="int16")
    right = b.qdq(b.node("Neg", ["input"]), "right", 0.02, 5, dtype="int16")
    model = b.build(b.qdq(b.node("Add", [left, right], name="join"), "y", 0.03, 0, dtype="int16"))
    one, two = (placed(model, "y", plus((1, 2, 3, 4), difference)) for difference in (1, 2))
    assert (one.cause, two.cause) == ("fused-multiply-add", "float-operators")
    assert "(Add join), off by 2" in two.explanation
    assert sorted(operand.name for operand in one.operands) == ["left", "right"]


def test_a_site_that_the_file_lacks_is_called_an_input(network: onnx.ModelProto) -> None:
    divergence = Divergence(site="nobody", index=(), expected=9, got=4, executor="e", inputs="i")
    found = localise(network, divergence, Evidence(feeds={"input": X}, expected={}, got={}))
    assert (found.node, found.op, found.cause, found.operands) == ("nobody", "input", "shape", ())
