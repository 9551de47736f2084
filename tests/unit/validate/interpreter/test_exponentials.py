"""Exp between codes: proved where every argument is known and no result lies near a tie, a float island
anywhere else.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest

from mixport.arithmetic.attention_softmax import Exponent, choose_exponent, is_proved, numerators
from mixport.validate.conformance.forms.onnx_model import Model
from mixport.validate.facts import facts_of
from mixport.validate.interpreter.graph import Node
from mixport.validate.interpreter.interpreter import Interpreter
from mixport.validate.interpreter.kernels_reduce import REDUCTIONS
from mixport.validate.proof.prove import prove

_GOOD = 0.0234


def exponent(step: float = _GOOD, bits: int = 8) -> Exponent:
    found = choose_exponent(step, bits=bits)
    assert found is not None
    return found


def near_a_tie() -> float:
    """A step of 16 significant bits whose exp(-c t) 256 lies within the bound of a tie for some code c."""
    rng = np.random.default_rng(0)
    for code, tie in zip(rng.integers(3, 250, 4000), rng.integers(2, 250, 4000) + 0.5, strict=True):
        step = math.log(256 / tie) / code
        mantissa, power = math.frexp(step)
        rounded = math.ldexp(round(math.ldexp(mantissa, 16)), power - 16)
        if not is_proved(Exponent(step=rounded, bits=8)):
            return rounded
    raise AssertionError("none found")


def file(
    step: float = _GOOD,
    *,
    unit: float = 2.0**-8,
    other_step: float | None = None,
    keepdims: int = 1,
    clip: tuple[int, int] | None = None,
    read_twice: bool = False,
    of_floats: bool = False,
) -> onnx.ModelProto:
    model = Model()
    if of_floats:
        difference = model.input("x", np.float32, 2)
    else:
        codes = model.input("x", np.uint8, 2)
        codes = codes if clip is None else model.clip(codes, clip)
        largest = model.node(
            "ReduceMax", codes, model.constant(np.asarray([-1], np.int64)), keepdims=keepdims
        )
        right = model.dequantise(largest, step if other_step is None else other_step, 7)
        difference = model.node("Sub", model.dequantise(codes, step, 7), right)
    exponential = model.node("Exp", difference)
    outputs: dict[str, Any] = {model.quantise(exponential, unit, 0): np.uint8}
    if read_twice:
        outputs[model.node("Neg", exponential)] = np.float32
    return model.build(outputs)


@pytest.mark.parametrize(("step", "bits"), [(0.0234, 8), (0.3, 8), (0.05, 4)])
def test_a_proved_exp_is_no_island_and_has_the_numerators_of_the_definition(step: float, bits: int) -> None:
    chosen = exponent(step, bits)
    interpreter = Interpreter(file(chosen.step, unit=2.0**-bits))
    assert interpreter.island_names == ()
    codes = np.random.default_rng(1).integers(0, 256, (9, 50)).astype(np.uint8)
    found = interpreter.run_feeds({"x": codes}).output
    assert found is not None
    np.testing.assert_array_equal(np.minimum(found, 2**bits - 1), numerators(codes, chosen))


def test_the_proof_is_told() -> None:
    interpreter = Interpreter(file(exponent().step))
    nodes = {record["op"]: record for record in prove(facts_of(interpreter, input_shape=(2, 9)))["nodes"]}
    assert nodes["Exp"]["portability"] == "exact by proof"
    assert "lies further from the boundary of two codes" in nodes["Exp"]["why"]


def test_a_result_near_a_tie_is_an_island() -> None:
    interpreter = Interpreter(file(near_a_tie()))
    ((name, reason),) = interpreter.island_reasons.items()
    assert name.endswith("(Exp)") and "boundary of two codes" in reason


def test_only_codes_that_occur_count() -> None:
    """Behind a Clip to few codes the same step has no argument near the tie."""
    step = near_a_tie()
    distances = np.abs(np.exp(-np.arange(256) * step) * 256 % 1 - 0.5)
    worst = int(distances[1:].argmin()) + 1
    assert Interpreter(file(step, clip=(20, 20 + worst))).island_names
    assert Interpreter(file(step, clip=(20, 19 + worst))).island_names == ()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"read_twice": True}, "what reads it is not one QuantizeLinear"),
        ({"of_floats": True}, "its input is no codes"),
        ({"keepdims": 0}, "it depends on two code tensors"),
    ],
)
def test_what_cannot_be_enumerated_is_an_island(options: dict[str, Any], why: str) -> None:
    interpreter = Interpreter(file(exponent().step, **options))
    assert [why in reason for reason in interpreter.island_reasons.values()] == [True]


def test_every_pair_counts_where_the_two_steps_differ() -> None:
    """Arguments are those of the file, not those that the form would have: other steps give positive ones,
    and other ties.
    """
    step = exponent().step
    assert Interpreter(file(step, other_step=step * 1.01)).island_names != ()


def test_exp_of_a_constant_is_not_computed_for_the_runtime() -> None:
    model = Model()
    y = model.node("Add", model.input("x", np.float32, 1), model.node("Exp", model.constant(0.3, np.float32)))
    assert Interpreter(model.build({model.quantise(y, 0.1, 0): np.uint8})).island_names != ()


def summed(x: np.ndarray) -> np.ndarray:
    node = Node(index=0, name="sum", op="ReduceSum", inputs=("x", "axes"), outputs=("y",))
    return REDUCTIONS["ReduceSum"](node, [x, np.asarray([-1])])[0]


def test_sums_are_exact_in_units_of_a_power_of_two() -> None:
    assert summed(np.array([[1.0, 2.5, 0.25]], np.float32)) == [[3.75]]
    assert summed(np.full((1, 65536), 255 / 256, np.float32)) == [[255 * 256]]
    assert summed(np.zeros((1, 3), np.float32)) == [[0.0]]
    for refused in ([[1.0, 2.0**-24]], [[0.1, 1e6]], [[np.inf, 1.0]], [[2.0**24, 1.0]]):
        with pytest.raises(ValueError, match="a sum of float32"):
            summed(np.array(refused, np.float32))


def test_a_sum_of_dequantised_codes_is_exact_for_a_power_of_two_alone() -> None:
    for scale, islands in ((2.0**-8, 0), (1 / 255, 1)):
        model = Model()
        total = model.node(
            "ReduceSum",
            model.dequantise(model.input("x", np.uint8, 2), scale, 0),
            model.constant(np.asarray([-1])),
        )
        assert len(Interpreter(model.build({total: np.float32})).island_names) == islands
