"""The table of accuracies in docs/results.md: published weights, real images, every bundle validated.

    python -m tests.benchmarks.accuracy [--data DIR] [--work DIR]

DIR is the data folder of the tests (default ../shared/data). Prints one markdown row a build, as it finishes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mixport.pipeline.build_bundle import build
from mixport.release.bundle import ReleaseBundle
from tests.e2e.real_data import cifar_calibration, imagenet_sample

_VIT = {
    "img_size": "32",
    "patch_size": "4",
    "embed_dim": "128",
    "depth": "4",
    "num_heads": "4",
    "mlp_ratio": "2",
    "num_classes": "10",
}


def cases(data: Path, work: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(title, MODEL, options) of every row."""
    cifar: dict[str, Any] = {
        "calib": f"images:{cifar_calibration(data, work / 'cifar.npz')}",
        "classes": data / "cifar10_classes.json",
        "eval": data / "cifar10_test.npz",
    }
    for depth in (20, 56):
        weights = data / f"cifar10_resnet{depth}.safetensors"
        for scheme in ("w8a8", "w4a8", "w4a4", "w2a8"):
            yield (
                f"ResNet-{depth}, CIFAR-10",
                f"builtin:cifar10-resnet{depth}",
                {**cifar, "weights": weights, "scheme": scheme},
            )
    sample = imagenet_sample(data, work / "sample.npz")
    mobile = {
        "weights": data / "imagenet_mobilenetv2_100_tf.safetensors",
        "model_arg": {"pad_type": "same"},
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "calib": f"images:{sample}",
        "images": 128,
        "eval": sample,
    }
    for scheme in ("w8a8", "w4a8"):
        yield "MobileNetV2, 500 ImageNet images", "timm:mobilenetv2_100", {**mobile, "scheme": scheme}
    vit = {
        **cifar,
        "weights": data / "cifar10_vit_p4_d128_l4.safetensors",
        "model_arg": _VIT,
        "input_size": (32, 32),
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2470, 0.2435, 0.2616),
    }
    for scheme in ("w8a8", "w4a8"):
        yield "small ViT, CIFAR-10", "timm:vit_tiny_patch16_224", {**vit, "scheme": scheme}


def row(title: str, scheme: str, bundle: ReleaseBundle) -> str:
    """One markdown row."""
    metrics, validation = bundle.manifest.metrics, bundle.manifest.validation
    values = sum(runtime.values for runtime in validation.runtimes)
    wrong = sum(runtime.mismatches for runtime in validation.runtimes)
    islands = len(validation.float_islands)
    accuracy = f"{metrics.top1_float:.2f} | {metrics.top1_quantized:.2f}"
    return (
        f"| {title} | {scheme} | {accuracy} | {metrics.size_ratio:.3f} | {wrong} of {values / 1e6:.0f} M "
        f"| {islands} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("dist/benchmark"))
    parser.add_argument("--scheme", action="append", help="rows of this scheme alone")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    print("| model | scheme | float top-1 | top-1 | file / float | codes that differ | float islands |")
    print("|---|---|---|---|---|---|---|")
    for number, (title, model, arguments) in enumerate(cases(options.data, options.work)):
        if options.scheme and arguments["scheme"] not in options.scheme:
            continue
        bundle = build(
            model, out=options.work / f"{number:02}", cache=options.work / "cache", iters=0, **arguments
        )
        print(row(title, arguments["scheme"], bundle), flush=True)


if __name__ == "__main__":
    main()
