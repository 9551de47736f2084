"""The three seams of quantisation: what a new algorithm, a table of widths and a new target need."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mixport.cli.program import run
from mixport.lower.lowering import lower
from mixport.model.float_model import load_model
from mixport.quantize.algorithms.context import ChoiceContext
from mixport.quantize.algorithms.nearest import choose_nearest
from mixport.quantize.calibration_batches import CalibrationBatches
from mixport.quantize.emit.emit import emit
from mixport.quantize.emit.simulate import open_simulation
from mixport.quantize.prepare import prepare
from mixport.quantize.prepared import Prepared
from mixport.quantize.quantizer import quantize
from mixport.records.calibration_set import CalibrationSet
from mixport.records.choices.algorithms import ALGORITHMS, Algorithm
from mixport.records.choices.scheme import Scheme
from mixport.records.choices.width_table import WidthTable
from mixport.records.errors import BadOptionError
from mixport.records.progress import SilentProgress
from mixport.records.targets import load_target
from mixport.storage.images import normalise
from mixport.validate.validate import validate

Capture = pytest.CaptureFixture[str]
MODEL, TARGET = "tests.models:tiny", load_target("ort-cpu")


@pytest.fixture
def calibration(tmp_path: Path) -> CalibrationSet:
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    np.save(tmp_path / "images.npy", images)
    return CalibrationSet(
        images_path=tmp_path / "images.npy", count=8, method="images", recipe_key="", content_sha256=""
    )


@pytest.fixture
def prepared(calibration: CalibrationSet) -> Prepared:
    return prepare(load_model(MODEL), calibration, TARGET, scheme=Scheme.parse("w4a4"))


def test_a_new_algorithm_needs_its_module_and_an_entry(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture
) -> None:
    own = Algorithm(
        name="random", title="random codes", entry="tests.unit.quantize.algorithms.random_codes:choose"
    )
    monkeypatch.setattr("mixport.records.choices.algorithms.ALGORITHMS", {**ALGORITHMS, own.name: own})
    monkeypatch.chdir(tmp_path)
    words = ["build", MODEL, "--calib", "noise", "--images", "8", "--validation-images", "4"]
    assert run([*words, "--reconstruction", "random", "--out", "out", "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["validation"]["verdict"] == "exact"
    assert found["reconstruction"] is None
    assert " --reconstruction random " in found["reproduce"]
    # Random codes are no good, which the float model's agreement shows: they are what ships.
    assert found["metrics"]["sqnr_db"] < 5


def test_a_table_of_widths_reaches_the_file(calibration: CalibrationSet, tmp_path: Path) -> None:
    scheme = Scheme.parse("w4a4")
    plain = quantize(load_model(MODEL), calibration, TARGET, scheme=scheme, workdir=tmp_path)
    narrow = next(site for site in plain.activations if site.bits == 4)
    name = narrow.name.removesuffix(".a4")
    layer = next(weight for weight in plain.weights if weight.bits == 4)
    table = WidthTable(weights={layer.name: 2}, activations={name: 6})
    found = quantize(load_model(MODEL), calibration, TARGET, scheme=scheme, table=table, workdir=tmp_path)
    changed = {
        new.name: (old.bits, new.bits)
        for old, new in zip(plain.activations, found.activations, strict=True)
        if old.bits != new.bits
    }
    assert set(changed.values()) == {(4, 6)} and len(changed) == 1
    assert {one.name: one.bits for one in found.weights}[layer.name] == 2
    (reason,) = {one.reason for one in found.activations if one.name in changed}
    assert reason == "read by a layer: 6 bits of the width table"
    lowered = lower(found, TARGET, workdir=tmp_path)
    pixels = normalise(calibration.open_images(), preprocessing=load_model(MODEL).preprocessing)
    assert validate(lowered, pixels, TARGET, simulation=open_simulation(found)).verdict == "exact"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (WidthTable(activations={"stem.0": 5, "nowhere": 4}), "no site 'nowhere' whose width is free"),
        (WidthTable(weights={"nowhere": 4}), "no layer 'nowhere' whose width is free"),
        (WidthTable(weights={"head": 9}), "layer head has 9 bits, allowed 2, 3, 4, 5, 6, 7, 8"),
    ],
)
def test_a_table_that_does_not_suit_the_model_is_refused(
    calibration: CalibrationSet, table: WidthTable, message: str
) -> None:
    with pytest.raises(BadOptionError, match=message):
        prepare(load_model(MODEL), calibration, TARGET, scheme=Scheme.parse("w4a4"), table=table)


def test_an_assignment_from_anywhere_is_emitted(
    prepared: Prepared, calibration: CalibrationSet, tmp_path: Path
) -> None:
    batches = CalibrationBatches(model=prepared.model, calibration=calibration)
    context = ChoiceContext(batches=batches, learner=None, progress=SilentProgress())
    before = prepared.graph.code
    chosen = choose_nearest(prepared, context)
    assert prepared.graph.code == before, "a choice leaves the graph as it is"
    assert chosen.params.keys() == {site.name for site in prepared.plan.sites}
    assert chosen.integers.keys() == prepared.widths.keys()
    made = emit(prepared, chosen, batches, workdir=tmp_path)
    assert [site.name for site in made.activations] == [site.name for site in prepared.plan.sites]
    assert len(made.weights) == len(chosen.integers)


def test_every_algorithm_can_be_loaded() -> None:
    loaded: dict[str, Callable[..., object]] = {name: one.load() for name, one in ALGORITHMS.items()}
    assert len({id(one) for one in loaded.values()}) == 2, "presets are one algorithm with other numbers"


def test_every_algorithm_is_in_the_documents(repository: Path) -> None:
    text = (repository / "docs" / "reconstruction.md").read_text(encoding="utf-8")
    assert [name for name in ALGORITHMS if f"`{name}`" not in text] == []
