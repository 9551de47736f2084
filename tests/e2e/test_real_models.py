"""Published weights and real images: accuracy, size, exactness, fusion. Skipped, with the reason, without the
data folder.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mixport.pipeline.build_bundle import build
from mixport.release.bundle import ReleaseBundle
from tests.e2e.real_data import cifar_calibration as cifar_calibration_file
from tests.e2e.real_data import imagenet_sample

pytestmark = [pytest.mark.e2e, pytest.mark.data, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cifar_calibration(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 512 training images."""
    return cifar_calibration_file(data_dir, tmp_path_factory.mktemp("cifar") / "calibration.npz")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def check_exact(bundle: ReleaseBundle) -> None:
    """Verdict, and no convolution or matrix product left in float."""
    validation = bundle.manifest.validation
    assert validation.verdict == "exact"
    assert sum(runtime.mismatches for runtime in validation.runtimes) == 0
    document = json.loads((bundle.path / "manifest.json").read_text("utf-8"))
    audit = document["validation"].get("audit") or document["audit"]
    assert audit["float_compute"] == []


@pytest.mark.parametrize(
    ("scheme", "drop", "ratio"),
    [
        pytest.param("w8a8", 0.3, 0.30, marks=pytest.mark.sweep),
        ("w4a8", 1.5, 0.17),
        pytest.param("w2a8", 100.0, 0.11, marks=pytest.mark.sweep),
    ],
)
def test_resnet20(
    data_dir: Path,
    cifar_calibration: Path,
    cache: Path,
    tmp_path: Path,
    scheme: str,
    drop: float,
    ratio: float,
) -> None:
    weights = data_dir / "cifar10_resnet20.safetensors"
    bundle = build(
        "builtin:cifar10-resnet20",
        weights=weights,
        classes=data_dir / "cifar10_classes.json",
        calib=f"images:{cifar_calibration}",
        images=512,
        scheme=scheme,
        iters=0,
        eval=data_dir / "cifar10_test.npz",
        out=tmp_path / "out",
        cache=cache,
    )
    check_exact(bundle)
    metrics = bundle.manifest.metrics
    assert metrics.top1_float is not None
    assert metrics.top1_quantized is not None
    assert metrics.top1_float - metrics.top1_quantized <= drop
    assert metrics.size_bytes <= ratio * weights.stat().st_size


@pytest.mark.sweep
def test_mobilenetv2(data_dir: Path, cache: Path, tmp_path: Path) -> None:
    sample = imagenet_sample(data_dir, tmp_path / "sample.npz")
    bundle = build(
        "timm:mobilenetv2_100",
        weights=data_dir / "imagenet_mobilenetv2_100_tf.safetensors",
        model_arg={"pad_type": "same"},
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        calib=f"images:{sample}",
        images=64,
        validation_images=8,
        scheme="w8a8",
        eval=sample,
        out=tmp_path / "out",
        cache=cache,
    )
    check_exact(bundle)
    metrics = bundle.manifest.metrics
    assert metrics.top1_float is not None
    assert metrics.top1_quantized is not None
    assert metrics.top1_float - metrics.top1_quantized <= 1.0


@pytest.mark.sweep
def test_a_small_vit_keeps_its_accuracy(
    data_dir: Path, cifar_calibration: Path, cache: Path, tmp_path: Path
) -> None:
    arguments = {
        "img_size": "32",
        "patch_size": "4",
        "embed_dim": "128",
        "depth": "4",
        "num_heads": "4",
        "mlp_ratio": "2",
        "num_classes": "10",
    }
    bundle = build(
        "timm:vit_tiny_patch16_224",
        weights=data_dir / "cifar10_vit_p4_d128_l4.safetensors",
        model_arg=arguments,
        input_size=(32, 32),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        classes=data_dir / "cifar10_classes.json",
        calib=f"images:{cifar_calibration}",
        images=256,
        validation_images=64,
        scheme="w8a8",
        eval=data_dir / "cifar10_test.npz",
        out=tmp_path / "out",
        cache=cache,
    )
    check_exact(bundle)
    assert bundle.manifest.validation.float_islands == ()
    metrics = bundle.manifest.metrics
    assert metrics.top1_float is not None
    assert metrics.top1_quantized is not None
    assert metrics.top1_float - metrics.top1_quantized <= 0.5
