"""Mixed widths under a size budget beside the best uniform width that fits: published weights, real images,
every bundle validated.

    python -m tests.benchmarks.mixed_precision [--data DIR] [--calib FILE.npz] [--work DIR] [--budgets 0.10
    ...] [--iters N]

DIR is the data folder of the tests (default ../shared/data); --iters is passed on to the build. Prints one
markdown row a build, as it finishes.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from mixport.pipeline.build_bundle import build
from mixport.records.errors import SizeBudgetError
from mixport.release.bundle import ReleaseBundle
from tests.e2e.real_data import cifar_calibration

_UNIFORM = (2, 3, 4, 5, 6, 7, 8)


def widths(bundle: ReleaseBundle) -> str:
    """How many layers have which weight bits, e.g. 12 x 2, 8 x 4."""
    counts = Counter(site.weight_bits for site in bundle.manifest.sites if site.kind == "weight")
    return ", ".join(
        f"{count} x {bits}" for bits, count in sorted(counts.items(), key=lambda item: item[0] or 0)
    )


def row(depth: int, budget: float | None, scheme: str, bundle: ReleaseBundle) -> str:
    """One markdown row."""
    metrics = bundle.manifest.metrics
    wrong = sum(runtime.mismatches for runtime in bundle.manifest.validation.runtimes)
    quality = (
        f"{metrics.top1_quantized:.2f} | {metrics.sqnr_db:.1f} | {metrics.size_bytes} | "
        f"{metrics.size_ratio:.4f}"
    )
    return f"| {depth} | {budget or ''} | {scheme} | {widths(bundle)} | {quality} | {wrong} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument(
        "--calib",
        type=Path,
        help="calibration images; default: the first 512 training images of the data folder",
    )
    parser.add_argument("--work", type=Path, default=Path("dist/mixed-precision"))
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 56])
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.10])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--iters", type=int)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    calib = options.calib or cifar_calibration(options.data, options.work / "cifar.npz")
    common: dict[str, Any] = {
        "calib": f"images:{calib}",
        "images": options.images,
        "classes": options.data / "cifar10_classes.json",
        "eval": options.data / "cifar10_test.npz",
        "cache": options.work / "cache",
        **({} if options.iters is None else {"iters": options.iters}),
    }
    print(
        "| ResNet | budget | scheme | layers x bits | top-1 | SQNR, dB | bytes | file / float | "
        "codes that differ |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for depth in options.depths:

        def run(scheme: str, depth: int = depth) -> ReleaseBundle:
            weights = options.data / f"cifar10_resnet{depth}.safetensors"
            out = options.work / f"{depth}-{scheme.replace(':', '-')}"
            return build(f"builtin:cifar10-resnet{depth}", weights=weights, scheme=scheme, out=out, **common)

        fitting = 0
        for bits in _UNIFORM:
            bundle = run(f"w{bits}a8")
            print(row(depth, None, f"w{bits}a8", bundle), flush=True)
            if bundle.manifest.metrics.size_ratio > max(options.budgets):
                break
            fitting = bits
        if not fitting:
            print(f"ResNet-{depth}: no uniform width keeps {max(options.budgets)}", flush=True)
        for budget in options.budgets:
            try:
                print(row(depth, budget, f"auto:{budget}", run(f"auto:{budget}")), flush=True)
            except SizeBudgetError as error:
                print(f"ResNet-{depth}: {error}", flush=True)


if __name__ == "__main__":
    main()
