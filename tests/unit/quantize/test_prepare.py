"""What is done to the float graph before integers are chosen, with and without levelled channels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx, nn

from mixport.model.float_model import load_model
from mixport.quantize.prepare import prepare
from mixport.quantize.prepared import Prepared
from mixport.records.calibration_set import CalibrationSet
from mixport.records.choices.scheme import Scheme
from mixport.records.errors import TargetError
from mixport.records.targets import load_target
from tests.reconstruction import Stack, calibration_of, float_model, seeded


def uneven(m: Stack) -> None:
    """One channel two hundred times as wide as its neighbours, undone in the layer that reads it."""
    m.second.weight[0] *= 200.0
    m.third.weight[:, 0] /= 200.0


@pytest.fixture
def calibration(tmp_path: Path) -> CalibrationSet:
    return calibration_of(tmp_path)


def prepared(calibration: CalibrationSet, **options: Any) -> tuple[nn.Module, Prepared]:
    module = seeded(Stack, uneven)
    found = prepare(
        float_model(module), calibration, load_target("ort-cpu"), scheme=Scheme.parse("w4a4"), **options
    )
    return module, found


def moved(module: nn.Module, found: Prepared) -> set[str]:
    """Layers that read another weight than the model's."""
    names: set[str] = set()
    for node, width in found.widths.items():
        source = node.args[1]
        assert isinstance(source, fx.Node)
        held = (
            found.graph.get_parameter(str(source.target))
            if source.target in dict(found.graph.named_parameters())
            else found.graph.get_buffer(str(source.target))
        )
        if not torch.equal(held, module.get_parameter(f"{width.name}.weight")):
            names.add(width.name)
    return names


def test_without_levelling_every_weight_is_the_model_s(calibration: CalibrationSet) -> None:
    module, found = prepared(calibration, level=False, learned=True)
    assert {width.name for width in found.widths.values()} == {"first", "second", "third", "head"}
    assert moved(module, found) == set()
    assert found.decisions == ()


def test_levelling_moves_them(calibration: CalibrationSet) -> None:
    module, found = prepared(calibration, learned=True)
    assert moved(module, found) == {"second", "third"}


def test_without_levelling_the_images_decide_nothing(calibration: CalibrationSet, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = calibration_of(tmp_path / "other", images=3)
    (_, one), (_, two) = (prepared(images, level=False, learned=True) for images in (calibration, other))
    assert one.graph.code == two.graph.code
    assert [(site.name, site.bits) for site in one.plan.sites] == [
        (site.name, site.bits) for site in two.plan.sites
    ]
    assert one.decisions == two.decisions


@pytest.mark.parametrize("form", ["float32", "power-of-two"])
def test_a_softmax_of_more_bits_than_the_target_s_is_refused(form: str, tmp_path: Path) -> None:
    """Powers of two have no attention that divides behind its product: its softmax stays one."""
    target = load_target("onnx-opset17")
    target = target.model_copy(update={"scale": target.scale.model_copy(update={"form": form})})
    model = load_model("tests.models:transformer")
    size = model.input_shape[-1]
    np.save(tmp_path / "sized.npy", np.random.default_rng(0).integers(0, 256, (12, size, size, 3), np.uint8))
    given = (model, replace(calibration_of(tmp_path), images_path=tmp_path / "sized.npy"), target)
    if form == "float32":
        assert prepare(*given, scheme=Scheme.parse("w8a8")).plan.sites
        return
    with pytest.raises(
        TargetError, match=r"activations\.stream_bits does not hold .*softmax of 16 bits, allowed 8"
    ):
        prepare(*given, scheme=Scheme.parse("w8a8"))


@pytest.mark.parametrize("name", ["onnx-opset13", "onnx-opset17"])
def test_a_normalisation_that_stays_one_needs_its_opset(name: str, tmp_path: Path) -> None:
    model = load_model("tests.models:transformer")
    size = model.input_shape[-1]
    np.save(tmp_path / "sized.npy", np.random.default_rng(0).integers(0, 256, (12, size, size, 3), np.uint8))
    calibration = replace(calibration_of(tmp_path), images_path=tmp_path / "sized.npy")
    given = (model, calibration, load_target(name).not_portable())
    if name == "onnx-opset17":
        assert prepare(*given, scheme=Scheme.parse("w8a8")).plan.sites
        return
    with pytest.raises(TargetError, match="norm1: LayerNormalization, which came with opset 17") as caught:
        prepare(*given, scheme=Scheme.parse("w8a8"))
    assert caught.value.hint is not None and "--portable" in caught.value.hint


@pytest.mark.parametrize("scheme", ["w4a8", "w4a4"])
def test_narrow_codes_do_not_have_their_middle_at_zero(scheme: str, calibration: CalibrationSet) -> None:
    """Refused before anything is learned, not by the file's own check at the end."""
    target = load_target("onnx-int8")
    rules = target.activations.model_copy(update={"storage": "int8", "zero_point": "zero"})
    target = target.model_copy(update={"activations": rules})
    given = (float_model(seeded(Stack)), calibration, target)
    if scheme == "w4a8":
        assert prepare(*given, scheme=Scheme.parse(scheme)).plan.sites
        return
    with pytest.raises(TargetError, match=r"zero_point 'zero' with 4 bits for .*allowed 8 bits") as caught:
        prepare(*given, scheme=Scheme.parse(scheme))
    assert caught.value.hint
