"""Latency of a bundle beside the float model and onnxruntime's own quantize_static, in one process, interleaved.

    python -m tests.benchmarks.latency BUNDLE --calib images.npz [--json]

The float file is torch's own ONNX export of the bundle's model; quantize_static makes its QDQ file from it (per channel, uint8
activations, int8 weights, min-max over 64 images). Ratios are to the bundle: above 1 is slower. Medians of one thread at batch 1.
"""

from __future__ import annotations

import argparse
import json
import shlex
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from mixport.artifacts import Preprocessing
from mixport.images import normalise
from mixport.lower.float_export import export_float
from mixport.progress import SilentProgress
from mixport.quantize import FloatModel, load_model
from mixport.release import read_bundle
from mixport.validate.latency import measure
from mixport.validate.static_quantizer import quantize_static_file


def model_of(reproduce: str, preprocessing: Preprocessing) -> FloatModel:
    """The float model that the bundle's command line names."""
    words = shlex.split(reproduce)
    options = {name: words[i + 1] for i, name in enumerate(words) if name.startswith("--") and i + 1 < len(words)}
    arguments = dict(words[i + 1].split("=", 1) for i, name in enumerate(words) if name == "--model-arg")
    weights = Path(options["--weights"]) if "--weights" in options else None
    spec = words[words.index("build") + 1]
    return load_model(spec, weights=weights, random_weights="--random-weights" in words, model_args=arguments)


def main() -> None:
    """Print one row a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--calib", type=Path, required=True, help="npz with `images` uint8 [N, H, W, 3]")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    manifest: Any = read_bundle(options.bundle).manifest
    words = manifest.preprocessing
    preprocessing = Preprocessing(size=tuple(words.size), mean=tuple(words.mean), std=tuple(words.std))
    model = model_of(manifest.reproduce, preprocessing)
    with np.load(options.calib, allow_pickle=False) as archive:
        images = normalise(archive["images"][:64], preprocessing=preprocessing)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        plain, static = base / "float.onnx", base / "static.onnx"
        export_float(model.module, plain, input_shape=model.input_shape)
        quantize_static_file(plain, static, images=images)
        files = [options.bundle / "model.onnx", plain, static]
        timed = measure(files, config={}, seconds=options.seconds, seed=0, progress=SilentProgress())
    own = timed[0].median_ms
    rows = [
        {"name": name, "median_ms": round(t.median_ms, 4), "ratio": round(t.median_ms / own, 3), "kilobytes": round(t.size_bytes / 1000)}
        for name, t in zip(("mixport", "float", "quantize_static"), timed, strict=True)
    ]
    if options.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(f"{row['name']:16} {row['median_ms']:8.3f} ms  x {row['ratio']:.3f}  {row['kilobytes']} KB")


if __name__ == "__main__":
    main()
