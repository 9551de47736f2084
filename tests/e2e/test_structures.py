"""Awkward structures through the whole pipeline: exact, and still the same function as the float model."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from mixport.model.float_model import load_model
from mixport.pipeline.build_bundle import build
from mixport.records.errors import UnsupportedModelError
from mixport.release.bundle import ReleaseBundle, read_golden

pytestmark = pytest.mark.e2e

NAMES = (
    "relu_on_a_stream",
    "boolean_mask",
    "average_of_averages",
    "average_cut_at_the_border",
    "average_with_padding_cut_behind_a_relu",
    "average_in_three_axes",
    "squeezed",
    "means_that_hardly_vary",
    "largest_channel",
    "names_of_ours",
    "slices_written_in_place",
    "norm_shared_and_chained",
    "batch_of_one",
    "causal_attention",
    "grouped_queries",
    "cross_attention",
    "affine_that_changes_nothing",
    "clamp_between_transposes",
    "powers_of_two",
    "norm_behind_linear",
    "position_made_in_forward",
    "largest_token",
    "borders",
    "uneven_max_pools",
    "blurred",
    "gated_residuals",
    "hard_swishes",
    "functions_between_convolutions",
    "places_of_maxima",
)

WITHOUT_ISLANDS = tuple(
    name for name in NAMES[NAMES.index("causal_attention") :] if name != "places_of_maxima"
)


def _decibels(wanted: np.ndarray, got: np.ndarray) -> float:
    """Power of the float outputs over that of what the file's are away from them: images of noise hardly
    vary, and are not to.
    """
    return 10 * math.log10(float(np.square(wanted).sum() / np.square(wanted - got).sum()))


def _float_outputs(model: str, bundle: ReleaseBundle) -> np.ndarray:
    with torch.no_grad():
        return torch.cat(
            [load_model(model).module(image[None]) for image in torch.as_tensor(read_golden(bundle).inputs)]
        ).numpy()


def _outputs(bundle: ReleaseBundle) -> tuple[np.ndarray, np.ndarray]:
    """The golden ones, and those of the file at optimisation level basic, where every operator runs as it
    stands.
    """
    golden = read_golden(bundle)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(
        str(bundle.path / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    return golden.output, np.concatenate(
        [session.run(None, {"input": image[None]})[0] for image in golden.inputs]
    )


_QUICK = ("boolean_mask", "cross_attention", "functions_between_convolutions", "gated_residuals", "squeezed")
"""One of each kind: masks, attention, tables, gates, shapes."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in _QUICK else pytest.mark.sweep) for name in NAMES],
)
def test_structure(name: str, tmp_path: Path) -> None:
    options = {"calib": "noise", "images": 16, "validation_images": 4, "scheme": "w8a8"}
    bundle = build(f"tests.structures:{name}", out=tmp_path / "out", cache=tmp_path / "cache", **options)
    assert bundle.manifest.validation.verdict == "exact"
    assert not bundle.manifest.validation.proofs["violations"]
    # 8-bit networks of a few layers stay well above this; a lost Relu or mask falls below 20 dB.
    wanted, (golden, unfused) = _float_outputs(f"tests.structures:{name}", bundle), _outputs(bundle)
    assert _decibels(wanted, golden) > 25.0
    assert _decibels(wanted, unfused) > 25.0
    assert (
        bundle.manifest.validation.site_checks["float operators: islands, and the output unfused"][
            "mismatches"
        ]
        == 0
    )
    if name in WITHOUT_ISLANDS or "average" in name:
        assert bundle.manifest.validation.float_islands == ()
        assert [site.name for site in bundle.manifest.sites if site.behind_island] == []
    products = [
        node
        for node in bundle.manifest.validation.proofs["nodes"]
        if node["op"] == "Mul" and "product" in node["why"]
    ]
    assert {node["portability"] for node in products} <= {"exact by proof"}
    assert products or name not in ("gated_residuals", "hard_swishes", "functions_between_convolutions")


def test_a_bad_output_is_told_and_stays_in_the_manifest(tmp_path: Path) -> None:
    told: list[str] = []
    few = {
        "calib": "noise",
        "images": 8,
        "iters": 0,
        "validation_images": 8,
        "scheme": "w2a2",
        "edge_bits": 2,
    }
    bundle = build(
        "tests.models:tiny", note=told.append, out=tmp_path / "out", cache=tmp_path / "cache", **few
    )
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
        build(
            "tests.structures:attention_that_sees_nothing",
            calib="noise",
            images=16,
            out=tmp_path / "out",
            cache=tmp_path,
        )
    assert caught.value.hint and "mask" in caught.value.hint


def test_a_model_that_mixes_the_images_of_a_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="depends on the other images of its batch"):
        build("tests.structures:MixesImages", calib="noise", images=16, out=tmp_path / "out", cache=tmp_path)
