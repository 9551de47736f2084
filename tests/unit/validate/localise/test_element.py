"""One element recomputed: at every position, the exact value rounds to the interpreter's code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mixport.records.validation_report import Operand
from mixport.validate.interpreter.fused_units import FusedUnit
from mixport.validate.interpreter.interpreter import Execution, Interpreter
from mixport.validate.localise.element import Element, element_of
from tests.unit.validate.qdq_graphs import QdqBuilder, build_network, build_transformer

f32 = np.float32


def executed(model: Any, count: int = 2) -> tuple[dict[str, FusedUnit], Execution]:
    names = {one.name for unit in Interpreter(model).units for one in unit.inputs}
    interpreter = Interpreter(model, watch=sorted(names))
    x = (np.random.default_rng(1).normal(size=(count, 3, 8, 8)) * 2).astype(f32)
    rng = np.random.default_rng(2)
    sites = {site.name: site for site in interpreter.plan.sites}
    shapes = {"norm1": (count, 16, 8), "attention": (count, 2, 16, 16)}
    given = {
        name: rng.integers(0, 256, shapes[name]).astype(sites[name].dtype) for name in interpreter.entry_sites
    }
    return {unit.output: unit for unit in interpreter.units}, interpreter.run(x, overrides=given)


def rounded(unit: FusedUnit, element: Element) -> float:
    assert element.exact is not None
    zero = 0 if unit.saturation is None else unit.saturation.zero_point
    return float(np.clip(np.rint(element.exact - zero) + zero, unit.low, unit.high))


@pytest.fixture(scope="module")
def network() -> tuple[dict[str, FusedUnit], Execution]:
    return executed(build_network().build("head_sum"))


OUTPUTS = ["stem", "stem.requantised", "branch", "join", "depthwise", "pool"]


@pytest.mark.parametrize("output", OUTPUTS)
def test_the_exact_value_rounds_to_the_code_everywhere_but_on_ties(output: str, network: Any) -> None:
    units, execution = network
    unit, codes = units[output], execution.codes[output]
    for index in np.ndindex(*codes.shape):
        found = element_of(unit, execution.codes, index)
        assert found.exact is not None
        # float32 may put a value on a tie that lies beside it.
        near = abs(found.exact % 1 - 0.5) < 1e-6
        assert abs(rounded(unit, found) - int(codes[index])) <= int(near), (output, index)


def test_a_layer_tells_its_window_and_its_rest(network: Any) -> None:
    units, execution = network
    unit = units["stem"]
    found = element_of(unit, execution.codes, (1, 5, 0, 7))
    x = np.pad(
        execution.codes["input_codes"][1].astype(np.int64), ((0, 0), (1, 1), (1, 1)), constant_values=128
    )
    # The corner reads padding above and to the right, which holds the zero point.
    window = np.moveaxis(x[:, 0:3, 7:10], 0, -1)
    assert found.codes is not None and found.weights is not None
    np.testing.assert_array_equal(found.codes, window)
    assert unit.bias is not None and unit.weight is not None
    np.testing.assert_array_equal(found.weights, np.moveaxis(unit.weight[5], 0, -1))
    assert found.rest == unit.bias[5] - 128 * unit.weight[5].sum()
    assert found.accumulator == (window * found.weights).sum() + found.rest
    assert found.operands == (Operand(name="input_codes", code=None, count=27),)


def test_float_arithmetic_agrees_but_near_ties(network: Any) -> None:
    units, execution = network
    unit, codes = units["branch"], execution.codes["branch"]
    found = [element_of(unit, execution.codes, index) for index in np.ndindex(*codes.shape)]
    differs = [one for one, code in zip(found, codes.reshape(-1), strict=True) if one.unfused != code]
    assert all(one.exact is not None and abs(one.exact % 1 - 0.5) < 1e-3 for one in differs)
    assert len(differs) < len(found) / 10


def test_a_layer_without_a_quantiser_gives_its_float(network: Any) -> None:
    units, execution = network
    assert execution.output is not None
    found = element_of(units["head_sum"], execution.codes, (1, 3))
    assert found.unfused is None and found.exact == pytest.approx(float(execution.output[1, 3]), rel=1e-6)


def test_an_add_reads_one_code_of_each(network: Any) -> None:
    units, execution = network
    found = element_of(units["join"], execution.codes, (0, 1, 2, 3))
    codes = {one.name: one.code for one in found.operands}
    assert codes == {name: int(execution.codes[name][0, 1, 2, 3]) for name in ("branch", "stem")}
    # Scales 0.25 and 0.125 over 0.125: ratios 2 and 1.
    assert found.exact == 2 * (codes["branch"] - 117) + codes["stem"] + 3
    assert found.accumulator is None


def test_a_product_of_two_tensors_reads_a_row_and_a_column() -> None:
    units, execution = executed(build_transformer().build("logits_sum"))
    unit, codes = units["context"], execution.codes["context"]
    for index in [(0, 0, 0, 0), (1, 1, 15, 3), (1, 0, 7, 2)]:
        found = element_of(unit, execution.codes, index)
        assert rounded(unit, found) == codes[index]
        assert [one.count for one in found.operands] == [16, 16]
    table = element_of(units["mlp.table"], execution.codes, (1, 5, 2))
    code = int(execution.codes["mlp.input"][1, 5, 2])
    assert table == Element(operands=(Operand(name="mlp.input", code=code, count=1),))


def test_broadcasting_reads_the_code_of_a_gate() -> None:
    b = QdqBuilder(shape=("N", 3, 4, 4))
    pool = b.qdq(b.node("GlobalAveragePool", [b.qdq("input", "x", 0.25, 3)]), "gate", 0.5, 1)
    product = b.node("Mul", [b.dequantise("x"), pool])
    model = b.build(b.qdq(product, "y", 1.0, 7))
    unit = {one.output: one for one in Interpreter(model).units}["y"]
    x, gate = np.arange(48, dtype=np.uint8).reshape(1, 3, 4, 4), np.asarray([9, 4, 6], np.uint8)
    found = element_of(unit, {"x": x, "gate": gate.reshape(1, 3, 1, 1)}, (0, 2, 3, 1))
    assert [one.code for one in found.operands] == [45, 6]
    assert found.accumulator == (45 - 3) * (6 - 1) and found.exact == 210 * 0.125 + 7
    # A shape that broadcasting does not read there has no code to tell.
    found = element_of(unit, {"x": x[:, :, :2], "gate": gate.reshape(1, 3, 1, 1)}, (0, 2, 3, 1))
    assert found.operands[0] == Operand(name="x", code=None, count=24) and found.exact is None


def test_a_group_reads_its_own_channels() -> None:
    b = QdqBuilder(shape=("N", 4, 8, 8))
    b.quantise("input", "x", 0.03, 128)
    conv = b.layer("Conv", "x", (6, 2, 3, 3), name="conv", group=2, strides=[2, 1], dilations=[1, 2])
    interpreter = Interpreter(b.build(b.qdq(conv, "y", 0.3, 117)))
    x = np.random.default_rng(4).normal(size=(1, 4, 8, 8)).astype(f32) * 2
    codes = interpreter.run(x).codes
    for index in [(0, 0, 0, 0), (0, 2, 2, 3), (0, 3, 1, 1), (0, 5, 2, 0)]:
        assert (
            rounded(interpreter.units[0], element_of(interpreter.units[0], codes, index)) == codes["y"][index]
        )
