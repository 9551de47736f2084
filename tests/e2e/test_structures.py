"""Awkward structures through the whole pipeline: exact, and still the same function as the float model."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mixport.errors import UnsupportedModelError
from mixport.pipeline import build
from mixport.quantize import load_model
from mixport.release import ReleaseBundle, read_golden

pytestmark = pytest.mark.e2e

NAMES = (
    "relu_on_a_stream",
    "boolean_mask",
    "average_of_averages",
    "largest_channel",
    "names_of_ours",
    "slices_written_in_place",
    "norm_shared_and_chained",
    "batch_of_one",
    "causal_attention",
    "grouped_queries",
    "cross_attention",
)


def decibels(model: str, bundle: ReleaseBundle) -> float:
    """Power of the float outputs over that of what the file's are away from them: images of noise hardly vary, and are not to."""
    golden = read_golden(bundle)
    with torch.no_grad():
        wanted = torch.cat([load_model(model).module(image[None]) for image in torch.as_tensor(golden.inputs)]).numpy()
    return 10 * math.log10(float(np.square(wanted).sum() / np.square(wanted - golden.output).sum()))


@pytest.mark.parametrize("name", NAMES)
def test_structure(name: str, tmp_path: Path) -> None:
    options = {"calib": "noise", "images": 16, "validation_images": 4, "scheme": "w8a8"}
    bundle = build(f"tests.structures:{name}", out=tmp_path / "out", cache=tmp_path / "cache", **options)
    assert bundle.manifest.validation.verdict == "exact"
    # 8-bit networks of a few layers stay well above this; a lost Relu or mask falls below 20 dB.
    assert decibels(f"tests.structures:{name}", bundle) > 25.0
    if "attention" in name or "queries" in name:
        assert bundle.manifest.validation.float_islands == ()


def test_a_bad_output_is_told_and_stays_in_the_manifest(tmp_path: Path) -> None:
    told: list[str] = []
    few = {"calib": "noise", "images": 8, "iters": 0, "validation_images": 8, "scheme": "w2a2", "edge_bits": 2}
    bundle = build("tests.models:tiny", note=told.append, out=tmp_path / "out", cache=tmp_path / "cache", **few)
    images, output, *_ = bundle.manifest.warnings
    assert images.message.startswith("8 different images, fewer than 32")
    assert "dB SQNR (below 15)" in output.message
    assert output.hint.startswith("--scheme w8a")
    assert [text for text in told if text.startswith("warning: output: far from the float model on 8 images")]
    assert bundle.manifest.validation.verdict == "exact"


def test_a_quotient_of_activations_is_outside_the_claim_by_name(tmp_path: Path) -> None:
    few = {"calib": "noise", "images": 16, "iters": 0, "validation_images": 4}
    bundle = build("tests.structures:safe_quotient", **few, out=tmp_path / "out", cache=tmp_path)
    assert bundle.manifest.validation.verdict == "exact"
    assert any("Div" in name for name in bundle.manifest.validation.float_islands)


def test_attention_that_sees_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="gives NaN") as caught:
        build("tests.structures:attention_that_sees_nothing", calib="noise", images=16, out=tmp_path / "out", cache=tmp_path)
    assert caught.value.hint and "mask" in caught.value.hint


def test_a_model_that_mixes_the_images_of_a_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="depends on the other images of its batch"):
        build("tests.structures:MixesImages", calib="noise", images=16, out=tmp_path / "out", cache=tmp_path)
