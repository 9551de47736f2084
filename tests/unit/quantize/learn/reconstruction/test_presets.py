"""Every preset on small models: it learns, and what it hands over is integers that every executor agrees
on.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mixport.lower import lower
from mixport.model.float_model import load_model
from mixport.quantize.emit.simulate import open_simulation
from mixport.quantize.quantizer import quantize
from mixport.records.calibration_set import CalibrationSet
from mixport.records.choices.reconstruction_preset import (
    DEFAULT,
    PRESETS,
    Preset,
    ReconstructionOptions,
)
from mixport.records.choices.scheme import Scheme
from mixport.records.choices.search import UnitRecord
from mixport.records.quantized_model import QuantizedModel
from mixport.records.targets import load_target
from mixport.validate.validate import validate

_TARGET = "ort-cpu"


def learned(folder: Path, model: str, preset: Preset, *, iters: int = 6) -> QuantizedModel:
    np.save(folder / "images.npy", np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8))
    calibration = CalibrationSet(
        images_path=folder / "images.npy", count=8, method="images", recipe_key="", content_sha256=""
    )
    options = ReconstructionOptions(preset=preset, iters=iters)
    return quantize(
        load_model(f"tests.models:{model}"),
        calibration,
        load_target(_TARGET),
        scheme=Scheme.parse("w3a4", edge_convention="qdrop"),
        reconstruction=options,
        workdir=folder,
    )


def errors(unit: UnitRecord) -> tuple[float, float]:
    """Before and after."""
    assert unit.error_before is not None and unit.error_after is not None
    return unit.error_before, unit.error_after


@pytest.mark.parametrize(
    ("model", "preset"),
    [
        ("tiny", DEFAULT),
        ("transformer", "aphq"),
        *(pytest.param("tiny", one, marks=pytest.mark.sweep) for one in PRESETS if one != DEFAULT),
    ],
)
def test_every_preset_keeps_the_bundle_exact(tmp_path: Path, model: str, preset: str) -> None:
    quantized = learned(tmp_path, model, PRESETS[preset])
    record = quantized.reconstruction
    assert record is not None
    assert record.preset == preset
    assert all(errors(unit)[1] <= errors(unit)[0] for unit in record.units)
    stages = PRESETS[preset].stages
    assert len(record.units) == 3 * len(stages)
    if all(stage.step_lr == 0 for stage in stages):
        assert not any(unit.sites for unit in record.units)
    target = load_target(_TARGET)
    lowered = lower(quantized, target, workdir=tmp_path)
    images = np.random.default_rng(1).normal(0, 1, (2, 3, 32, 32)).astype(np.float32)
    report = validate(lowered, images, target, simulation=open_simulation(quantized))
    assert report.verdict == "exact"


@pytest.mark.parametrize("name", ["mixport", "adaround", "genie-m", "pd-quant", "aphq"])
def test_faster_rates_make_the_error_smaller_in_a_few_steps(tmp_path: Path, name: str) -> None:
    preset = PRESETS[name]
    stages = tuple(replace(stage, rounding_lr=0.1, rounding_weight=0.0) for stage in preset.stages)
    record = learned(tmp_path, "tiny", replace(preset, stages=stages), iters=40).reconstruction
    assert record is not None
    assert min(after / before for before, after in map(errors, record.units)) < 0.95


def test_stages_learn_weights_first_and_steps_after(tmp_path: Path) -> None:
    record = learned(tmp_path, "tiny", PRESETS["brecq"]).reconstruction
    assert record is not None
    weights, steps = record.units[:3], record.units[3:]
    assert all(unit.name.endswith(" (weights)") and not unit.sites for unit in weights)
    assert all(unit.name.endswith(" (steps)") and not unit.layers for unit in steps)


def test_a_share_of_the_steps_is_at_least_one() -> None:
    weights, steps = PRESETS["brecq"].stages
    assert (weights.steps(20_000), steps.steps(20_000), steps.steps(1)) == (20_000, 5_000, 1)


def test_published_presets_say_what_they_leave_out() -> None:
    for name, preset in PRESETS.items():
        assert preset.title
        if name != "mixport":
            assert "arXiv" in preset.title
            assert "published with" in preset.title
            assert preset.differs
