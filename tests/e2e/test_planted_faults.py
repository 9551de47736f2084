"""One fault of each kind planted in a small model's file: proof or comparison finds it, at its node."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mixport.lower import lower
from mixport.model.float_model import load_model
from mixport.quantize.emit.simulate import open_simulation
from mixport.quantize.quantizer import quantize
from mixport.records.calibration_set import CalibrationSet
from mixport.records.choices.scheme import Scheme
from mixport.records.quantized_model import LoweredGraph, QuantizedModel
from mixport.records.targets import load_target
from mixport.records.validation_report import ValidationReport
from mixport.validate.facts import facts_of
from mixport.validate.interpreter.interpreter import Interpreter
from mixport.validate.proof.prove import prove
from mixport.validate.validate import validate

pytestmark = pytest.mark.e2e

f32 = np.float32
Change = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Made:
    """The tiny model at w8a8, and its file."""

    quantized: QuantizedModel
    lowered: LoweredGraph
    model: onnx.ModelProto


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("planted")
    images = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    np.save(folder / "images.npy", images)
    calibration = CalibrationSet(
        images_path=folder / "images.npy", count=16, method="images", recipe_key="", content_sha256=""
    )
    target = load_target("ort-cpu")
    quantized = quantize(
        load_model("tests.models:tiny"), calibration, target, scheme=Scheme.parse("w8a8"), workdir=folder
    )
    lowered = lower(quantized, target, workdir=folder)
    return Made(quantized=quantized, lowered=lowered, model=onnx.load(str(lowered.model_path)))


def changed(model: onnx.ModelProto, **changes: Change) -> onnx.ModelProto:
    """A copy with some initialisers changed; `__` stands for `/` and `_0_` for `.0.` in their names."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    stored = {initializer.name: initializer for initializer in copy.graph.initializer}
    for name, change in changes.items():
        tensor = stored[name.replace("__", "/").replace("_0_", ".0.")]
        tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), tensor.name))
    return copy


def ulp(array: np.ndarray, channel: int = 0, *, up: bool = True) -> np.ndarray:
    """One unit in the last place more, or less, for one channel."""
    flat = array.reshape(-1)
    flat[channel] = np.nextafter(flat[channel], f32(np.inf if up else -np.inf))
    return array


def proofs_of(model: onnx.ModelProto) -> Any:
    facts = facts_of(
        Interpreter(model),
        input_shape=(1, 3, 32, 32),
        pair_limit=load_target("ort-cpu").accumulator.pair_limit,
    )
    return json.loads(json.dumps(prove(facts)))


def compared(made: Made, model: onnx.ModelProto, folder: Path) -> ValidationReport:
    """The faulty file against the simulation of what was meant."""
    path = folder / "faulty.onnx"
    onnx.save(model, str(path))
    images = np.random.default_rng(5).normal(size=(24, 3, 32, 32)).astype(f32)
    return validate(
        replace(made.lowered, model_path=path),
        images,
        load_target("ort-cpu"),
        simulation=open_simulation(made.quantized),
        prove=prove,
    )


def test_the_file_itself_has_no_fault(made: Made, tmp_path: Path) -> None:
    report = compared(made, made.model, tmp_path)
    assert report.verdict == "exact"
    proofs: Any = report.proofs
    assert proofs["violations"] == []
    for bound in ("int32_accumulators", "int16_pairs", "requantisation", "add_ratios"):
        assert proofs[bound]["holds"], bound
    classes = {node["node"]: node["portability"] for node in proofs["nodes"]}
    assert {classes[name] for name in ("stem.0/Conv", "branch.0/Conv", "depthwise.0/Conv", "add/Add")} == {
        "exact by proof"
    }


def test_a_weight_scale_off_by_one_ulp(made: Made) -> None:
    [violation] = proofs_of(changed(made.model, **{"branch_0_weight__scale": ulp}))["violations"]
    assert (violation["node"], violation["bound"]) == ("branch.0/Conv", "scales")
    assert "is not x_scale * w_scale" in violation["found"]


def test_an_activation_scale_off_by_one_ulp_for_one_reader(made: Made) -> None:
    model = changed(made.model)
    scale = next(t for t in model.graph.initializer if t.name == "add/scale")
    model.graph.initializer.append(numpy_helper.from_array(ulp(numpy_helper.to_array(scale).copy()), "other"))
    reader = next(
        node
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[1] == "add/scale"
    )
    reader.input[1] = "other"
    violations = proofs_of(model)["violations"]
    assert {one["node"] for one in violations} == {"depthwise.0/Conv"}
    assert any("is quantised with scale" in one["found"] for one in violations)


def test_a_scale_that_was_moved_for_exactness_and_is_moved_back(made: Made) -> None:
    """Weight and bias scale agree with each other: only the proof of requantisation can tell."""
    moved = {d.where for d in made.quantized.decisions if "units in the last place" in d.what}
    assert "stem.0" in moved
    found: list[str] = []
    x_scale = next(
        numpy_helper.to_array(t) for t in made.model.graph.initializer if t.name == "input.codes/scale"
    )
    weights = next(
        numpy_helper.to_array(t) for t in made.model.graph.initializer if t.name == "stem.0.weight/scale"
    )
    for channel in range(len(weights)):
        for up in (True, False):
            scale = ulp(weights.copy(), channel, up=up)
            biases = (f32(x_scale) * scale).astype(f32)
            model = changed(
                made.model,
                **{"stem_0_weight__scale": lambda _, s=scale: s, "stem_0_bias__scale": lambda _, b=biases: b},
            )
            proofs = proofs_of(model)
            assert proofs["violations"] == []
            found += proofs["requantisation"]["exceptions"]
    assert found and set(found) == {"stem.0"}


def test_an_odd_zero_point_in_an_add_with_a_fractional_ratio(made: Made) -> None:
    model = changed(made.model, **{"add__scale": lambda a: (a * f32(0.7)).astype(f32)})
    model.graph.initializer.append(numpy_helper.from_array(np.uint8(7), "odd"))
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[1] == "add/scale":
            node.input[2] = "odd"
    proofs = proofs_of(model)
    ratio = next(one for one in proofs["violations"] if one["bound"] == "add ratio")
    assert ratio["node"] == "add/Add"
    assert "no integer" in ratio["found"] and "odd" in ratio["found"]
    assert proofs["add_ratios"]["exceptions"] == ["add"]
    assert (
        next(node for node in proofs["nodes"] if node["node"] == "add/Add")["portability"] == "not portable"
    )


def test_a_weight_that_breaks_the_pair_bound(made: Made) -> None:
    def break_pair(weights: np.ndarray) -> np.ndarray:
        weights[5, 2, 1, 1] = weights[5, 3, 1, 1] = (
            65  # neighbours in the kernel: same position, channels 2 and 3
        )
        return weights

    [violation] = proofs_of(changed(made.model, branch_0_weight=break_pair))["violations"]
    assert (violation["node"], violation["bound"]) == ("branch.0/Conv", "pair saturation")
    assert "channel 5, weights 34 and 35: sums from 0 to 33150" in violation["found"]

    def harmless(weights: np.ndarray) -> np.ndarray:
        weights[5, 1, 1, 1] = weights[5, 2, 1, 1] = 65  # these two never meet
        weights[5, 0, 1, 1] = weights[5, 3, 1, 1] = 0
        return weights

    assert proofs_of(changed(made.model, branch_0_weight=harmless))["violations"] == []


def test_a_bias_whose_scale_is_a_thousandth_off(made: Made) -> None:
    [violation] = proofs_of(
        changed(made.model, depthwise_0_bias__scale=lambda a: (a * f32(1.001)).astype(f32))
    )["violations"]
    assert (violation["node"], violation["bound"]) == ("depthwise.0/Conv", "scales")


COMPARED: dict[str, tuple[dict[str, Change], str]] = {
    "swapped channel": ({"branch_0_weight": lambda a: a[[1, 0, *range(2, len(a))]]}, "branch.0"),
    "bias code off by one": (
        {"depthwise_0_bias": lambda a: a + np.eye(len(a), dtype=a.dtype)[3]},
        "depthwise.0",
    ),
}


@pytest.mark.parametrize("kind", COMPARED)
def test_other_integers_are_found_by_comparison(made: Made, tmp_path: Path, kind: str) -> None:
    changes, site = COMPARED[kind]
    report = compared(made, changed(made.model, **changes), tmp_path)
    assert report.verdict == "mismatch"
    assert [one.site for one in report.divergences if one.executor == "simulation"] == [site]
