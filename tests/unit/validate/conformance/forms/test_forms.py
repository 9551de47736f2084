"""Forms of the kit, family by family: seeds repeat, names are unique, inputs aim at ties and saturation, and
the answers are those of the interpreter or of plain NumPy.
"""

from __future__ import annotations

import math
from functools import cache, partial
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from mixport.arithmetic.float_functions import FLOAT_FUNCTIONS
from mixport.records.errors import InvariantError
from mixport.validate.conformance.forms import (
    attention,
    carriers,
    casts,
    codes,
    expected,
    floats,
    functions,
    products,
    sums,
    unused,
)
from mixport.validate.conformance.forms.case import Form, FormCase, Run
from mixport.validate.conformance.forms.onnx_model import Model
from mixport.validate.interpreter.interpreter import Interpreter

f32, f64 = np.float32, np.float64
MODULES = [attention, carriers, casts, codes, floats, functions, products, sums, unused]
FORMS = {form.name: form for module in MODULES for form in module.FORMS}


@cache
def cases(name: str) -> tuple[FormCase, ...]:
    return FORMS[name].make(np.random.default_rng(7))


def runs(form: str, case: str, kind: str = "") -> list[Run]:
    (found,) = (one for one in cases(form) if one.name == case)
    return [run for run in found.runs if kind in ("", run.kind)]


def answer(run: Run) -> np.ndarray:
    (only,) = run.expected.values()
    return only


def feed(run: Run, name: str = "x") -> np.ndarray:
    return np.asarray(run.feeds[name])


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_names_are_unique_and_every_run_holds_values(module: ModuleType) -> None:
    forms: tuple[Form, ...] = module.FORMS
    assert len({form.name for form in forms}) == len(forms) > 0
    assert {form.emitted for form in forms} <= ({False} if module is unused else {True, False})
    for form in forms:
        assert form.about and len({case.name for case in cases(form.name)}) == len(cases(form.name))
        assert all(run.expected.keys() == set(case.outputs) for case in cases(form.name) for run in case.runs)
        assert all(case.values > 0 for case in cases(form.name))


@pytest.mark.parametrize("name", FORMS)
def test_a_seed_gives_the_same_cases_twice(name: str) -> None:
    for one, two in zip(cases(name), FORMS[name].make(np.random.default_rng(7)), strict=True):
        assert (one.name, one.model) == (two.name, two.model)
        for a, b in zip(one.runs, two.runs, strict=True):
            assert a.kind == b.kind
            for left, right in ((a.feeds, b.feeds), (a.expected, b.expected)):
                assert left.keys() == right.keys()
                for key, array in left.items():
                    assert array.dtype == right[key].dtype and array.tobytes() == right[key].tobytes()


#: Islands to the interpreter: a float MatMul, and a division by any float. So is a function whose floats are
#: read.
ISLANDS = {"float.matmul.integers", "float.div", "double.div", "float.subnormals"}
INTERPRETED = [
    form.name
    for module in (attention, casts, floats, sums, functions)
    for form in module.FORMS
    if form.name not in ISLANDS and not form.name.startswith("function-error")
]


@pytest.mark.parametrize("name", INTERPRETED)
def test_numpy_answers_are_those_of_the_interpreter(name: str) -> None:
    for case in cases(name):
        interpreter = Interpreter(onnx.ModelProto.FromString(case.model))
        assert interpreter.island_names == ()
        for run in case.runs:
            with np.errstate(all="ignore"):
                found = interpreter.run_feeds(run.feeds).outputs
            for output, wanted in run.expected.items():
                got = found[output]
                assert got is not None and got.dtype == wanted.dtype
                np.testing.assert_array_equal(got, wanted, err_msg=f"{case.name}, {run.kind}")


@pytest.mark.parametrize("form", unused.FORMS, ids=lambda form: form.name)
def test_the_interpreter_has_no_answer_for_what_is_not_emitted(form: Form) -> None:
    for case in cases(form.name):
        interpreter = Interpreter(onnx.ModelProto.FromString(case.model))
        assert len(interpreter.island_names) == 1
        assert set(interpreter.run_feeds(case.runs[0].feeds).outputs.values()) == {None} or (
            interpreter.entry_sites == case.outputs
        )


@pytest.mark.parametrize("name", ["exact-ties", "exact-ties-even"])
def test_products_of_carriers_hold_ties_and_add_the_zero_point_first(name: str) -> None:
    a_zero, b_zero, y_zero = {"exact-ties": (0, 128, 5), "exact-ties-even": (1, 127, 6)}[name]
    run = runs("mul", name, "all-pairs")[0]
    exact = (feed(run, "a").astype(int) - a_zero) * (feed(run, "b").astype(int) - b_zero) / 64 + y_zero
    assert (exact % 1 == 0.5).mean() > 0.005 and exact.min() < -0.5 and exact.max() > 255.5
    np.testing.assert_array_equal(answer(run), np.clip(np.rint(exact), 0, 255).astype(np.uint8))


def test_sums_of_carriers_saturate_at_both_ends() -> None:
    run = runs("add.integer-ratio", "ratios-3-and-5", "all-pairs")[0]
    assert {(int(a), int(b)) for a, b in zip(feed(run, "a").flat, feed(run, "b").flat, strict=True)} == {
        (a, b) for a in range(256) for b in range(256)
    }
    total = 3 * feed(run, "a").astype(int) + 5 * (feed(run, "b").astype(int) - 255) + 1
    assert total.min() < 0 and total.max() > 255
    np.testing.assert_array_equal(answer(run), np.clip(total, 0, 255).astype(np.uint8))


def test_averages_of_carriers_hold_ties_and_both_ends() -> None:
    (near,) = runs("global-average-pool", "exact-ties", "near-tie")
    total = (feed(near).astype(int) - 3).sum(axis=(2, 3), keepdims=True)
    assert (total / 32 % 1 == 0.5).any()
    np.testing.assert_array_equal(answer(near), np.clip(np.rint(total / 32) + 5, 0, 255).astype(np.uint8))
    (ends,) = runs("global-average-pool", "exact-ties", "saturation")
    assert set(np.unique(answer(ends))) == {np.clip(round(2 * (code - 3)) + 5, 0, 255) for code in (0, 255)}


def test_tables_and_pools_of_carriers_move_every_code() -> None:
    (run,) = runs("table.gather-elements", "falling-table")
    np.testing.assert_array_equal(answer(run), 255 - np.arange(256))
    plain, *ends = runs("max-pool", "plain")
    windows = feed(plain).reshape(2, 8, 6, 2, 6, 2)
    np.testing.assert_array_equal(answer(plain), windows.max(axis=(3, 5)))
    assert [run.kind for run in ends] == ["saturation"] * 2
    assert [np.unique(answer(run)).tolist() for run in ends] == [[0], [255]]


def test_casts_of_doubles_hold_ties_and_overflow() -> None:
    (near,) = runs("cast.double-to-float", "plain", "near-tie")
    ties = feed(near)[:8]
    rounded = ties.astype(f32)
    # Halfway between two floats, and to the one whose last bit is 0.
    distance = np.abs(rounded.astype(f64) - ties)
    other = np.where(rounded < ties, np.nextafter(rounded, f32(np.inf)), np.nextafter(rounded, f32(-np.inf)))
    np.testing.assert_array_equal(distance, np.abs(other.astype(f64) - ties))
    assert (answer(near)[:8].view(np.uint32) & 1 == 0).all()
    (ends,) = runs("cast.double-to-float", "plain", "saturation")
    largest = np.finfo(f32).max
    assert answer(ends).tolist() == [[np.inf, -np.inf, largest, np.inf, 0.0, 0.0]]


def test_codes_near_ties_stand_on_and_beside_every_boundary() -> None:
    found = codes.near_ties(0.25, 3, "uint8")[0].astype(f64) / 0.25
    ties = found[: len(found) // 3]
    np.testing.assert_array_equal(ties, np.arange(-2, 258) - 3 + 0.5)
    above, below = found[len(ties) : 2 * len(ties)], found[2 * len(ties) :]
    assert (above > ties).all() and (below < ties).all() and (above - below < 1e-4).all()
    assert codes.all_codes("int16").shape == (1, 65536) and codes.all_codes("int16")[0, 0] == -32768


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16"])
def test_quantisers_of_codes_round_half_to_even_and_saturate(dtype: str) -> None:
    info, middle = np.iinfo(dtype), (int(np.iinfo(dtype).min) + int(np.iinfo(dtype).max) + 1) // 2
    for run in runs(f"quantize.{dtype}", "power-of-two"):
        exact = np.nan_to_num(feed(run).astype(f64) * 64)
        wanted = np.clip(np.rint(exact) + middle, info.min, info.max).astype(dtype)
        np.testing.assert_array_equal(answer(run), wanted, err_msg=run.kind)
    (ends,) = runs(f"quantize.{dtype}", "power-of-two", "saturation")
    assert {info.min, info.max} <= set(answer(ends)[0].tolist())


def test_two_roundings_of_codes_are_not_merged() -> None:
    (run,) = runs("requantise.chain", "odd-zero-points")
    reals = (np.arange(256) - 117) * float(f32(0.021))
    first = np.clip(np.rint(reals / float(f32(0.023))) + 131, 0, 255)
    second = np.clip(np.rint((first - 131) * float(f32(0.023)) / float(f32(0.0251))) + 129, 0, 255)
    np.testing.assert_array_equal(answer(run)[0], second)
    merged = np.clip(np.rint(reals / float(f32(0.0251))) + 129, 0, 255)
    assert (merged != second).sum() > 30


def test_floats_tell_one_rounding_from_two_and_reach_subnormals() -> None:
    (run,) = runs("float.mul-add", "mul-add", "cancellation")
    a, b, c = (feed(run, name) for name in "abc")
    np.testing.assert_array_equal(answer(run), a * b + c)
    fused = (a.astype(f64) * b.astype(f64) + c.astype(f64)).astype(f32)
    assert (fused != answer(run)).mean() > 0.9
    for name in ("mul", "div"):
        (run,) = runs("float.subnormals", name)
        assert (np.abs(answer(run)) < np.finfo(f32).tiny).all() and (answer(run) != 0).any()


@pytest.mark.parametrize("key", FLOAT_FUNCTIONS)
def test_functions_are_within_their_bound_in_float64(key: str) -> None:
    function = FLOAT_FUNCTIONS[key]
    name = functions.function_form(function)
    (run,) = runs(name.replace("function.", "function-error."), "bound")
    distance = np.abs(function.evaluate(feed(run).astype(f64)) - feed(run, "reference"))
    assert (answer(run) == 1).all() and len(feed(run)) == 60_001
    assert (distance <= feed(run, "bound") + 2.0**-24 * np.abs(feed(run, "reference"))).all()
    every = runs(name, "plain", "all-codes")[0]
    assert feed(every).reshape(-1).tolist() == list(range(256)) and len(np.unique(answer(every))) > 20


@pytest.mark.parametrize("value", [1.0, 0.75, 3.0, 2.0**-20, 5e-9])
def test_the_power_of_two_below(value: float) -> None:
    found = products.power_of_two_below(value)
    assert found <= value < 2 * found and math.frexp(found)[0] == 0.5


def test_products_hold_ties_and_saturate() -> None:
    (case,) = (case for case in cases("matmul.dynamic") if case.name == "exact-ties")
    (unit,) = Interpreter(onnx.ModelProto.FromString(case.model)).units
    assert unit.saturation is not None
    scale = 0.25 * 0.125 / float(unit.saturation.scale)
    found: dict[str, Any] = {}
    for run in case.runs:
        exact = ((feed(run, "a").astype(int) - 7) @ (feed(run, "b").astype(int) - 128)) * scale + 5
        np.testing.assert_array_equal(answer(run), np.clip(np.rint(exact - 5) + 5, 0, 255))
        found.setdefault(run.kind, []).append(exact)
    # Row i is crafted against column i.
    assert (np.diagonal(found["near-tie"][0], axis1=1, axis2=2) % 1 == 0.5).mean() > 0.9
    ends = np.concatenate([one.reshape(-1) for one in found["saturation"]])
    assert ends.min() < -0.5 and ends.max() > 255.5


def test_sums_stay_within_their_float_type() -> None:
    for form, limit in (("float.reduce-sum.integers", 2**24), ("double.reduce-sum.integers", 2**53)):
        largest = max(float(np.abs(answer(run)).max()) for case in cases(form) for run in case.runs)
        assert limit / 16384 < largest <= limit
    for case in cases("float.matmul.integers"):
        a, b = (feed(case.runs[0], name) for name in "ab")
        assert (np.abs(a) @ np.abs(b)).max() < 2**24
        np.testing.assert_array_equal(answer(case.runs[0]), a.astype(int) @ b.astype(int))


def test_attention_divides_behind_its_product() -> None:
    (run,) = runs("softmax.divided-later", "64x24-bits-4", "equal")
    # Equal scores are the mean of the values.
    mean = feed(run, "v").astype(int).mean(axis=1, keepdims=True)
    assert np.abs(answer(run) - mean).max() <= 0.5 + 1e-4
    for kind in ("masked", "saturation", "near-tie"):
        assert len(runs("softmax.divided-later", "197x64-bits-8", kind)) == 1
    (hidden,) = runs("softmax.divided-later", "197x64-bits-8", "masked")
    # A row that is hidden wholly is a mean, too, not a NaN.
    assert np.isneginf(feed(hidden)[:, 0]).all()
    mean = feed(hidden, "v").astype(int).mean(axis=1)
    assert np.abs(answer(hidden)[:, 0] - mean).max() <= 0.5 + 1e-4


def test_unused_ties_go_to_even_as_in_the_unfused_graph() -> None:
    run = runs("add.ties", "scales-0-zero-points-3-128-64")[0]
    exact = ((feed(run, "a").astype(int) - 3) + (feed(run, "b").astype(int) - 128)) / 2
    assert (exact % 1 == 0.5).mean() == 0.5
    np.testing.assert_array_equal(answer(run), np.clip(np.rint(exact) + 64, 0, 255))


def test_expected_spread_and_bell_are_what_they_say() -> None:
    found = expected.spread((64, 64), np.random.default_rng(0), octaves=3)
    assert found.dtype == f32 and (found < 0).mean() == pytest.approx(0.5, abs=0.05)
    assert np.abs(found).min() >= 2.0**-3 and np.abs(found).max() < 2.0**3
    normal = expected.bell((20_000,), np.random.default_rng(0))
    assert normal.dtype == f64 and normal.mean() == pytest.approx(0, abs=0.05)
    assert normal.std() == pytest.approx(1, abs=0.02) and np.abs(normal).max() < 6


def test_expected_refuses_what_it_has_no_answer_for() -> None:
    model = Model()
    built = model.build({model.node("Softmax", model.input("x", f32, 2)): f32})
    x = np.zeros((1, 2), f32)
    with pytest.raises(InvariantError, match="case soft: no answer for t0, since of Softmax is not bit-port"):
        expected.interpreted("soft", built, [("random", {"x": x})])
    with pytest.raises(InvariantError, match="case soft holds 0 fused units, allowed one that can be cut"):
        expected.crafted("soft", built, np.random.default_rng(0))
    with pytest.raises(TypeError, match="case soft: the answer is float64, the graph gives float32"):
        expected.computed("soft", built, partial(np.asarray, dtype=f64), [("random", {"x": x})])
