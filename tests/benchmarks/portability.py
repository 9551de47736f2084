"""The same codes on every runtime: mixport's files, and onnxruntime's quantize_static beside them.

    python -m tests.benchmarks.portability --data FOLDER --work FOLDER [--runtime NAME ...] [--model NAME ...]
    [--scheme wWaA ...]

Every model is built at every scheme with all runtimes compared: 32 images, adversarial images, and each
operator on crafted codes. quantize_static's file runs the same 32 images on the same runtimes; its codes are
compared with those of the native runtime. Results are kept in WORK/portability.json, row by row, so that an
interrupted run goes on; the table is printed at the end.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from mixport.lower.float_export import export_float
from mixport.model.float_model import FloatModel, load_model
from mixport.model.request import PreprocessingOverrides
from mixport.pipeline.build_bundle import build
from mixport.records.errors import MixportError, ValidationFailedError
from mixport.records.runtime import Runtime, RuntimeJob
from mixport.records.targets import load_target
from mixport.release.bundle import read_bundle
from mixport.storage.images import normalise
from mixport.validate.run.static_quantizer import quantize_static_file
from mixport.validate.runtimes import open_runtimes
from tests.e2e.real_data import cifar_calibration, imagenet_sample

SCHEMES = ("w8a8", "w4a8", "w2a4")
RUNTIMES = ("native", "x64-avx2", "wasm", "arm64")
IMAGES = 32
OTHER = "quantize_static"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model: how to load it, and where its images come from (cifar, imagenet, or noise)."""

    title: str
    spec: str
    images: str
    size: int
    weights: str = ""
    model_arg: Mapping[str, str] = field(default_factory=dict[str, str])
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None


def _timm(name: str, size: int = 64, **model_arg: str) -> Row:
    return Row(title=name, spec=f"timm:{name}", images="noise", size=size, model_arg=model_arg)


_HALF = (0.5, 0.5, 0.5)
ROWS = (
    Row(
        title="ResNet-20",
        spec="builtin:cifar10-resnet20",
        images="cifar",
        size=32,
        weights="cifar10_resnet20.safetensors",
    ),
    Row(
        title="ResNet-56",
        spec="builtin:cifar10-resnet56",
        images="cifar",
        size=32,
        weights="cifar10_resnet56.safetensors",
    ),
    Row(
        title="MobileNetV2",
        spec="timm:mobilenetv2_100",
        images="imagenet",
        size=224,
        weights="imagenet_mobilenetv2_100_tf.safetensors",
        model_arg={"pad_type": "same"},
        mean=_HALF,
        std=_HALF,
    ),
    _timm("resnet18"),
    _timm("regnetx_002"),
    _timm("mobilenetv3_small_100"),
    _timm("efficientnet_lite0"),
    _timm("densenet121"),
    _timm("convnext_atto"),
    _timm("vit_tiny_patch16_224"),
    _timm("deit_tiny_patch16_224"),
    _timm("swin_tiny_patch4_window7_224", 112, img_size="112", window_size="7"),
)


def build_row(row: Row, scheme: str, *, data: Path, work: Path, runtimes: tuple[str, ...]) -> dict[str, Any]:
    """Build and validate on every runtime; what differed, by runtime."""
    files = {"cifar": work / "cifar.npz", "imagenet": work / "imagenet.npz"}
    options: dict[str, Any] = {
        "scheme": scheme,
        "calib": f"images:{files[row.images]}" if row.images in files else "noise",
        "images": 128 if row.images in files else IMAGES,
        "validation_images": IMAGES,
        "model_arg": dict(row.model_arg),
        "runtime": runtimes,
        "iters": 0,
        "out": work / f"{row.title}-{scheme}",
        "cache": work / "cache",
    }
    if row.weights:
        options["weights"] = data / row.weights
    else:
        options["random_weights"] = True
    if row.images == "noise":
        options["input_size"] = (row.size, row.size)
    if row.mean is not None:
        options |= {"mean": row.mean, "std": row.std}
    try:
        manifest = build(row.spec, **options).manifest
    except ValidationFailedError:
        manifest = read_bundle(options["out"]).manifest
    validation = manifest.validation
    found: dict[str, Any] = {
        result.name: {
            "tensors": result.tensors,
            "values": result.values,
            "mismatches": result.mismatches,
            "version": result.version,
        }
        for result in validation.runtimes
    }
    return {"runtimes": found, "islands": list(validation.float_islands), "verdict": validation.verdict}


def other_row(row: Row, *, data: Path, work: Path, runtimes: tuple[Runtime, ...]) -> dict[str, Any]:
    """quantize_static's file on the same images: codes of each runtime against the first one's."""
    overrides = PreprocessingOverrides(
        input_size=(row.size, row.size) if row.images == "noise" else None,
        mean=row.mean,
        std=row.std,
        crop_fraction=None,
    )
    model = load_model(
        row.spec,
        weights=data / row.weights if row.weights else None,
        random_weights=not row.weights,
        model_args=dict(row.model_arg),
        overrides=overrides,
    )
    images = _images(row, model, work)
    folder = work / f"{row.title}-{OTHER}"
    folder.mkdir(exist_ok=True)
    plain, path = folder / "float.onnx", folder / "static.onnx"
    export_float(model.module, plain, input_shape=model.input_shape)
    quantize_static_file(plain, path, images=images)
    proto, names = _with_codes(path)
    job = RuntimeJob(
        model=proto.SerializeToString(), feeds=[{"input": image[None]} for image in images], outputs=names
    )
    reference: Any = None
    found: dict[str, Any] = {}
    for runtime in runtimes:
        info, (answer,) = runtime.run([job], policy=load_target("ort-cpu").session)
        if answer.refused:
            found[runtime.name] = {"refused": answer.refused}
            continue
        reference = reference or answer.runs
        pairs = [(a[name], b[name]) for a, b in zip(reference, answer.runs, strict=True) for name in names]
        found[runtime.name] = {
            "tensors": len(names),
            "values": sum(a.size for a, _ in pairs),
            "mismatches": sum(int((a != b).sum()) for a, b in pairs),
            "version": info.version,
        }
    return {"runtimes": found, "islands": [], "verdict": ""}


def _images(row: Row, model: FloatModel, work: Path) -> np.ndarray:
    if row.images == "noise":
        pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, row.size, row.size, 3), dtype=np.uint8)
    else:
        with np.load(work / f"{row.images}.npz", allow_pickle=False) as archive:
            pixels = archive["images"][:IMAGES]
    return normalise(pixels, preprocessing=model.preprocessing)


def _with_codes(path: Path) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The file with the result of every activation QuantizeLinear as a further output."""
    proto = onnx.load(str(path))
    constants = {tensor.name for tensor in proto.graph.initializer}
    names = tuple(
        n.output[0] for n in proto.graph.node if n.op_type == "QuantizeLinear" and n.input[0] not in constants
    )
    proto.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None) for name in names
    )
    return proto, names


def table(results: Mapping[str, Any], runtimes: tuple[str, ...]) -> str:
    """Markdown, a row a model: codes that differ on each runtime, of mixport's files and of
    quantize_static's.

    mixport's codes are compared with its interpreter, quantize_static's with those of the first runtime.
    """
    header = ["model", "mixport", "codes", *runtimes, "float islands", f"{OTHER}: codes", *runtimes[1:]]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for title in dict.fromkeys(key.split("/")[0] for key in results):
        own = {scheme: results[f"{title}/{scheme}"] for scheme in SCHEMES if f"{title}/{scheme}" in results}
        other = results.get(f"{title}/{OTHER}", {})
        failed = [found["error"] for found in (*own.values(), other) if "error" in found]
        if failed:
            lines.append(f"| {title} | {failed[0]} |")
            continue
        islands = sorted({island for found in own.values() for island in found["islands"]})
        lines.append(
            "| "
            + " | ".join(
                [
                    title,
                    ", ".join(own),
                    _millions(
                        [
                            result["values"]
                            for found in own.values()
                            for name, result in found["runtimes"].items()
                            if name in runtimes
                        ]
                    ),
                    *(_sum([found["runtimes"].get(name) for found in own.values()]) for name in runtimes),
                    str(len(islands)),
                    _millions([result.get("values", 0) for result in other.get("runtimes", {}).values()]),
                    *(_share(other.get("runtimes", {}).get(name)) for name in runtimes[1:]),
                ]
            )
            + " |"
        )
    return "\n".join(lines)


def _millions(values: list[int]) -> str:
    return f"{sum(values) / 1e6:.0f} M" if values else ""


def _sum(results: list[Mapping[str, Any] | None]) -> str:
    present = [result for result in results if result is not None]
    return (
        "not run"
        if len(present) < len(results) or not results
        else f"{sum(result['mismatches'] for result in present):,}"
    )


def _share(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return "not run"
    if "refused" in result:
        return "refused"
    return f"{result['mismatches']:,} ({100 * result['mismatches'] / result['values']:.2g} %)"


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("dist/portability"))
    parser.add_argument("--runtime", action="append", help=f"default: {', '.join(RUNTIMES)}")
    parser.add_argument("--model", action="append", help="titles; default: all")
    parser.add_argument("--scheme", action="append", help=f"default: {', '.join(SCHEMES)} and {OTHER}")
    given = parser.parse_args()
    work: Path = given.work
    work.mkdir(parents=True, exist_ok=True)
    names = tuple(given.runtime or RUNTIMES)
    cifar_calibration(given.data, work / "cifar.npz")
    imagenet_sample(given.data, work / "imagenet.npz")
    opened = tuple(open_runtimes(names))
    path = work / "portability.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    for row in ROWS:
        for scheme in given.scheme or (*SCHEMES, OTHER):
            key = f"{row.title}/{scheme}"
            if key in results or (given.model and row.title not in given.model):
                continue
            print(key, flush=True)
            try:
                if scheme == OTHER:
                    results[key] = other_row(row, data=given.data, work=work, runtimes=opened)
                else:
                    results[key] = build_row(row, scheme, data=given.data, work=work, runtimes=names)
            except MixportError as error:
                results[key] = {"error": f"{type(error).__name__}: {error}"}
            path.write_text(json.dumps(results, indent=1))
    print(table(results, names))


if __name__ == "__main__":
    main()
