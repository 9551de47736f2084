"""What calibration images are worth: one model and scheme, calibrated on real images, drawn ones of every
strategy, and noise.

    python -m tests.benchmarks.calibration_data --data ../shared/data --work DIR

Prints a markdown table: top-1 on the CIFAR-10 test images, mean and spread over seeds. A seed decides which
real images are taken, or which prompts and noise the images are drawn from.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mixport.pipeline.build_bundle import build
from tests.e2e.real_data import cifar_calibration


def sources(real: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(title, calibration options) of every row."""
    yield "real training images", {"calib": f"images:{real}"}
    for k in (2, 3, 4):
        yield f"mixup, {k} classes a prompt", {"calib": "mixup", "classes_per_prompt": k}
    yield "single class", {"calib": "single"}
    yield "GenQ: adjective and class", {"calib": "genq"}
    yield "noise", {"calib": "noise"}


def top1(
    data: Path, work: Path, *, model: str, scheme: str, images: int, seed: int, options: dict[str, Any]
) -> tuple[float, float]:
    """(quantised, float) top-1 in percent. Few images are validated: this table is about accuracy."""
    bundle = build(
        model,
        scheme=scheme,
        images=images,
        seed=seed,
        iters=0,
        # As many narrow activations as there can be: it is they that images calibrate
        edge_convention="qdrop",
        eval=data / "cifar10_test.npz",
        validation_images=8,
        out=work / "bundle",
        cache=work / "cache",
        **options,
    )
    metrics = bundle.manifest.metrics
    assert metrics.top1_quantized is not None and metrics.top1_float is not None
    return metrics.top1_quantized, metrics.top1_float


def main() -> None:
    """Read the command line and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10")
    parser.add_argument("--work", type=Path, required=True, help="folder for the cache and the bundles")
    parser.add_argument("--model", default="builtin:cifar10-resnet20")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--scheme", default="w4a4")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    real = cifar_calibration(given.data, given.work / "real.npz", count=1000)
    print(
        f"| calibration, {given.images} images | {given.scheme} top-1, mean of {given.seeds} seeds | "
        "least to most |"
    )
    print("|---|---|---|")
    for title, options in sources(real):
        if given.weights is not None:
            options = {**options, "weights": given.weights}
        results = [
            top1(
                given.data,
                given.work,
                model=given.model,
                scheme=given.scheme,
                images=given.images,
                seed=seed,
                options=options,
            )
            for seed in range(given.seeds)
        ]
        quantised = np.array([one for one, _ in results])
        print(
            f"| {title} | {quantised.mean():.2f} | {quantised.min():.2f} to {quantised.max():.2f} |",
            flush=True,
        )
    print(f"| float model | {results[0][1]:.2f} | |")


if __name__ == "__main__":
    main()
