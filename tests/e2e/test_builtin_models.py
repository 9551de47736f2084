"""The models that ship: sizes, formats, and what `mixport build` makes of them without any argument about the
model.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, DiffusionPipeline
from safetensors import safe_open

from mixport import builtin
from mixport.cli.program import run
from mixport.model.float_model import load_model
from mixport.storage.images import normalise

pytestmark = pytest.mark.e2e

_MAX_BYTES = 24_000_000


def test_weights_fit_the_package_and_are_safetensors() -> None:
    folder = Path(builtin.__file__).parent
    weights = sorted(folder.rglob("*.safetensors"))
    assert sum(path.stat().st_size for path in weights) <= _MAX_BYTES
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]
    for path in weights:
        with safe_open(path, framework="numpy") as archive:
            assert len(list(archive.keys())) > 0


def test_the_generator_is_a_pipeline_like_any_other() -> None:
    pipeline = DiffusionPipeline.from_pretrained(builtin.generator_folder())
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        ["A photo of a ship", "A photo of a cat and a truck"], num_inference_steps=4, output_type="np"
    ).images
    assert images.shape == (2, 32, 32, 3)
    assert images.std() > 0.05


@pytest.mark.data
def test_the_decoder_keeps_the_texture_of_photographs(data_dir: Path) -> None:
    with np.load(data_dir / "cifar10_test.npz") as archive:
        pixels = torch.from_numpy(archive["images"][:256]).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    model = AutoencoderTiny.from_pretrained(builtin.generator_folder() / "vae")
    with torch.inference_mode():
        decoded = model.decode(model.encode(pixels).latents).sample
    kept = _fine_energy(decoded) / _fine_energy(pixels)
    # 0.54 behind a decoder of pixel and feature losses alone, which networks calibrated on its images pay for
    # at 2 bits.
    assert 0.7 <= kept <= 1.1


def _fine_energy(images: torch.Tensor) -> float:
    """Above 0.4 cycles a pixel."""
    frequency = torch.fft.fftfreq(images.shape[-1])
    radius = torch.sqrt(frequency[:, None] ** 2 + frequency**2)
    return float(torch.fft.fft2(images).abs().square()[..., radius >= 0.4].mean())


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "least"),
    [("cifar10-resnet20", 0.91), pytest.param("cifar10-vit", 0.895, marks=pytest.mark.sweep)],
)
def test_a_classifier_is_as_good_as_its_card_says(name: str, least: float, data_dir: Path) -> None:
    model = load_model(f"builtin:{name}")
    with np.load(data_dir / "cifar10_test.npz") as archive:
        images, labels = archive["images"], archive["labels"]
    right = 0
    with torch.inference_mode():
        for start in range(0, len(images), 500):
            batch = torch.from_numpy(
                normalise(images[start : start + 500], preprocessing=model.preprocessing)
            )
            right += int((model.module(batch).argmax(1).numpy() == labels[start : start + 500]).sum())
    assert right / len(images) >= least


def test_the_vit_is_small_and_timm_s() -> None:
    model = load_model("builtin:cifar10-vit").module
    assert type(model).__module__ == "timm.models.vision_transformer"
    assert sum(value.numel() for value in model.parameters()) <= 3_000_000


def test_build_needs_no_argument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["--images", "16", "--iters", "0", "--validation-images", "8"]
    assert run(["build", *few, "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["model"]["source"] == "builtin:cifar10-resnet20"
    assert manifest["scheme"] == "w4a8"
    assert manifest["target"]["name"] == "ort-cpu"
    assert (manifest["calibration"]["method"], manifest["calibration"]["generator"]) == ("mixup", "builtin")
    assert manifest["validation"]["verdict"] == "exact"
    assert run(["build", *few]) == 0
    said = capsys.readouterr().err
    assert "all of them are in calib_cache already" in said
    assert "drawing images" not in said
