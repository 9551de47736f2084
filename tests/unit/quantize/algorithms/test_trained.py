"""Integers from a training's folder: exactly those, or a refusal that names what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_tensors

from mixport.quantize.algorithms.context import ChoiceContext
from mixport.quantize.algorithms.nearest import choose_nearest
from mixport.quantize.algorithms.trained import ChooseTrained
from mixport.quantize.calibration_batches import CalibrationBatches
from mixport.quantize.prepare import prepare
from mixport.quantize.prepared import Assignment, Prepared
from mixport.records.choices.scheme import Scheme
from mixport.records.choices.trained import INTEGERS_FILE, SITES_FILE
from mixport.records.errors import BadInputError
from mixport.records.progress import SilentProgress
from mixport.records.targets import load_target
from mixport.train.folder import integers_of, sites_of
from tests.reconstruction import calibration_of, float_model, stack, without_biases

Sites = dict[str, Any]
Tensors = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Given:
    """A prepared graph, and the integers of some training of it."""

    prepared: Prepared
    context: ChoiceContext
    assignment: Assignment

    def write(self, folder: Path) -> None:
        sites = sites_of(self.assignment, self.prepared, source="a test")
        (folder / SITES_FILE).write_text(sites.text())
        save_tensors(integers_of(self.assignment, self.prepared), folder / INTEGERS_FILE)

    def read(self, folder: Path) -> Assignment:
        return ChooseTrained(folder=folder)(self.prepared, self.context)


def given_of(module: Any, folder: Path) -> Given:
    calibration = calibration_of(folder)
    prepared = prepare(
        float_model(module),
        calibration,
        load_target("ort-cpu"),
        scheme=Scheme.parse("w3a4"),
        learned=True,
        level=False,
    )
    batches = CalibrationBatches(model=prepared.model, calibration=calibration)
    context = ChoiceContext(batches=batches, learner=None, progress=SilentProgress())
    return Given(prepared, context, choose_nearest(prepared, context))


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    return given_of(stack(), tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def without_bias(tmp_path_factory: pytest.TempPathFactory) -> Given:
    return given_of(without_biases(), tmp_path_factory.mktemp("without"))


def assert_same(found: Assignment, wanted: Assignment) -> None:
    assert found.params == wanted.params
    assert found.widths == wanted.widths
    assert found.integers.keys() == wanted.integers.keys()
    for node, integers in wanted.integers.items():
        one = found.integers[node]
        assert one.codes.dtype == np.int8 and one.scales.dtype == np.float32
        np.testing.assert_array_equal(one.codes, integers.codes)
        np.testing.assert_array_equal(one.scales, integers.scales)
        assert (one.bias is None) == (integers.bias is None)
        if one.bias is not None and integers.bias is not None:
            np.testing.assert_array_equal(one.bias, integers.bias)


def test_exactly_what_was_stored_is_chosen(given: Given, tmp_path: Path) -> None:
    given.write(tmp_path)
    assert_same(given.read(tmp_path), given.assignment)


def test_a_layer_without_bias_has_none(without_bias: Given, tmp_path: Path) -> None:
    without_bias.write(tmp_path)
    assert [one for one in load_file(tmp_path / INTEGERS_FILE) if one.startswith("bias/")] == ["bias/first"]
    assert_same(without_bias.read(tmp_path), without_bias.assignment)


def test_nothing_is_rounded_or_calibrated_again(given: Given, tmp_path: Path) -> None:
    """Codes that no rounding of these weights would give come back as they were written."""
    given.write(tmp_path)
    path = tmp_path / INTEGERS_FILE
    tensors = load_file(path)
    tensors["codes/second"] = np.random.default_rng(0).integers(-4, 4, tensors["codes/second"].shape, np.int8)
    tensors["scales/second"] = np.linspace(0.1, 0.9, 8, dtype=np.float32)
    save_file(tensors, path)
    sites = json.loads((tmp_path / SITES_FILE).read_text())
    name = next(name for name, one in sites["sites"].items() if "scale" in one)
    sites["sites"][name]["scale"] = 0.123
    (tmp_path / SITES_FILE).write_text(json.dumps(sites))
    found = given.read(tmp_path)
    (second,) = (node for node, width in given.prepared.widths.items() if width.name == "second")
    np.testing.assert_array_equal(found.integers[second].codes, tensors["codes/second"])
    np.testing.assert_array_equal(found.integers[second].scales, tensors["scales/second"])
    (site,) = (
        one for one in given.prepared.plan.sites if one.role == "compute" and (one.base or one.name) == name
    )
    assert found.params[site.name].scale == float(np.float32(0.123)), "a float32, as the file holds it"


def changed_tensors(change: Callable[[Tensors], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / INTEGERS_FILE)
        change(tensors)
        save_file(tensors, folder / INTEGERS_FILE)

    return apply


def changed_sites(change: Callable[[Sites], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        path = folder / SITES_FILE
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return apply


def put(name: str, make: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> Callable[[Path], object]:
    return changed_tensors(lambda tensors: tensors.update({name: make(tensors[name])}))


def at_first(value: float) -> Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    def make(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        made = array.copy()
        made.reshape(-1)[0] = value
        return made

    return make


INTEGER_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no codes": (changed_tensors(lambda one: one.pop("codes/second")), "no codes and scales of layer second"),
    "no scales": (changed_tensors(lambda one: one.pop("scales/head")), "no codes and scales of layer head"),
    "shape": (
        put("codes/second", lambda one: one[:4].copy()),
        r"codes of second are int8 \(4, 8, 3, 3\), allowed int8 \(8, 8, 3, 3\)",
    ),
    "scale of a tensor": (
        put("scales/second", lambda one: one[:1].copy()),
        r"scales of second are float32 \(1,\), allowed float32 \(8,\)",
    ),
    "dtype of codes": (
        put("codes/second", lambda one: one.astype(np.int32)),
        r"codes of second are int32 \(8, 8, 3, 3\), allowed int8",
    ),
    "dtype of scales": (
        put("scales/second", lambda one: one.astype(np.float64)),
        r"scales of second are float64 \(8,\), allowed float32",
    ),
    "dtype of bias": (
        put("bias/second", lambda one: one.astype(np.float16)),
        r"bias of second are float16 \(8,\), allowed float32",
    ),
    "too wide": (
        put("codes/second", at_first(4)),
        "codes of second go from -?[0-9] to 4, allowed -4 to 3 of 3 bits",
    ),
    "too low": (
        put("codes/second", at_first(-5)),
        "codes of second go from -5 .*, allowed -4 to 3 of 3 bits",
    ),
    "widest": (put("codes/head", at_first(-128)), "codes of head go from -128 .*, allowed -127 to 127"),
    "NaN scale": (put("scales/second", at_first(np.nan)), "scales and bias of second must be finite"),
    "scale 0": (put("scales/second", at_first(0.0)), "scales and bias of second .* above 0"),
    "infinite scale": (put("scales/second", at_first(np.inf)), "scales and bias of second must be finite"),
    "NaN bias": (put("bias/second", at_first(np.nan)), "scales and bias of second must be finite"),
    "no bias": (
        changed_tensors(lambda one: one.pop("bias/second")),
        "layer second has a bias in one of model and file",
    ),
    "missing": (lambda folder: (folder / INTEGERS_FILE).unlink(), "missing, damaged or not safetensors"),
    "cut": (
        lambda folder: (
            (folder / INTEGERS_FILE).write_bytes((folder / INTEGERS_FILE).read_bytes()[:-9]) and None
        ),
        "missing, damaged or not safetensors",
    ),
    "text": (
        lambda folder: (folder / INTEGERS_FILE).write_text("hello, this is no tensor"),
        "missing, damaged or not safetensors",
    ),
}


@pytest.mark.parametrize("fault", INTEGER_FAULTS)
def test_integers_that_do_not_suit_the_graph_are_refused(fault: str, given: Given, tmp_path: Path) -> None:
    change, message = INTEGER_FAULTS[fault]
    given.write(tmp_path)
    change(tmp_path)
    with pytest.raises(BadInputError, match=rf"integers\.safetensors.*{message}") as caught:
        given.read(tmp_path)
    assert caught.value.hint is not None and "mixport train" in caught.value.hint


def test_a_bias_that_the_model_has_not_is_refused(without_bias: Given, tmp_path: Path) -> None:
    without_bias.write(tmp_path)
    changed_tensors(lambda one: one.update({"bias/second": np.zeros(8, np.float32)}))(tmp_path)
    with pytest.raises(BadInputError, match="layer second has a bias in one of model and file"):
        without_bias.read(tmp_path)


def first_site(document: Sites) -> str:
    """Of 4 bits."""
    return next(name for name, one in document["sites"].items() if one["bits"] == 4)


SITE_FAULTS: dict[str, tuple[Callable[[Sites], object], str]] = {
    "missing": (lambda one: one["sites"].pop(first_site(one)), "nothing for site .*, allowed its 4 bits"),
    "missing carrier": (
        lambda one: one["carriers"].clear(),
        "nothing for site input.codes, allowed its 8 bits",
    ),
    "width": (
        lambda one: one["sites"][first_site(one)].update(bits=5),
        "5 bits for site .*, allowed its 4 bits",
    ),
    "no scale": (
        lambda one: one["sites"][first_site(one)].pop("scale"),
        "lacks scale, zero_point, lowest or highest",
    ),
    "no highest": (
        lambda one: one["sites"][first_site(one)].pop("highest"),
        "lacks scale, zero_point, lowest or highest",
    ),
    "NaN scale": (lambda one: one["sites"][first_site(one)].update(scale=float("nan")), r"sites\..*scale"),
    "no range": (
        lambda one: one["sites"][first_site(one)].update(lowest=9, highest=9),
        r"codes \[9, 9\] with zero point 0 do not fit uint8",
    ),
    "beyond storage": (
        lambda one: one["sites"][first_site(one)].update(lowest=250, highest=256),
        r"codes \[250, 256\] .* do not fit uint8",
    ),
    "tiny scale": (
        lambda one: one["sites"][first_site(one)].update(scale=1e-60),
        "scale is 0.0, allowed positive and finite",
    ),
    "huge scale": (
        lambda one: one["sites"][first_site(one)].update(scale=1e60),
        "scale is inf, allowed positive and finite",
    ),
}


@pytest.mark.parametrize("fault", SITE_FAULTS)
@pytest.mark.filterwarnings("ignore:overflow")
def test_sites_that_do_not_suit_the_graph_are_refused(fault: str, given: Given, tmp_path: Path) -> None:
    change, message = SITE_FAULTS[fault]
    given.write(tmp_path)
    changed_sites(change)(tmp_path)
    with pytest.raises(BadInputError, match=rf"sites\.json.*{message}"):
        given.read(tmp_path)


def test_codes_wider_than_a_site_are_refused(given: Given, tmp_path: Path) -> None:
    """uint8 holds them, the 4 bits that the manifest names do not; a zero point elsewhere is no matter."""
    given.write(tmp_path)
    changed_sites(lambda one: one["sites"][first_site(one)].update(highest=16))(tmp_path)
    with pytest.raises(BadInputError, match=r"sites\.json: site .*: codes \[0, 16\], allowed 16 of 4 bits"):
        given.read(tmp_path)
    changed_sites(lambda one: one["sites"][first_site(one)].update(lowest=1, zero_point=1))(tmp_path)
    assert given.read(tmp_path).params.keys() == given.assignment.params.keys()


def test_the_folder_of_another_model_is_refused(given: Given, without_bias: Given, tmp_path: Path) -> None:
    given.write(tmp_path)
    with pytest.raises(BadInputError, match="layer second has a bias in one of model and file"):
        without_bias.read(tmp_path)
