"""What each cached stage result depends on: the keys under which the store keeps it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixport.records.calibration_set import CalibrationSet
from mixport.records.choices.algorithms import Algorithm
from mixport.records.choices.reconstruction_preset import ReconstructionOptions
from mixport.records.choices.scheme import Scheme
from mixport.records.choices.width_table import WidthTable
from mixport.records.fingerprint import sha256_file, sha256_json
from mixport.records.machine import compute_threads
from mixport.records.targets import Target

if TYPE_CHECKING:
    from mixport.model.float_model import FloatModel

_PACKAGE = Path(__file__).parents[1]
QUANTIZE_CODE = ("arithmetic", "model", "quantize", "records", "storage")
"""Folders that decide integers: those that quantize imports. A text in the command line, a report or a check
decides none.
"""
LOWER_CODE = ("arithmetic", "lower", "records", "storage")
"""Folders that decide the bytes of a file, given the integers."""
_QUANTIZE_PACKAGES = ("torch", "timm", "numpy", "scipy")
_LOWER_PACKAGES = ("torch", "onnx", "onnx-ir", "onnxscript")


def model_key(model: FloatModel) -> str:
    """SHA-256 of the float model: its values, its structure, the code of its modules, and its program or its
    factory's arguments.

    Equal weights are not enough: two architectures can share a state dict and differ in padding or in
    `forward`, and an argument can decide what `forward` does without a trace in the structure.
    """
    module: Any = model.module
    files = {getattr(sys.modules.get(type(child).__module__), "__file__", None) for child in module.modules()}
    code = sorted(sha256_file(Path(file)) for file in files if file is not None and Path(file).is_file())
    return sha256_json(
        [model.source, model.origin, model.sha256, repr(module), code, model.preprocessing, model.input_shape]
    )


def quantized_key(
    *,
    model: str,
    calibration: CalibrationSet,
    target: Target,
    scheme: Scheme,
    algorithm: Algorithm,
    reconstruction: ReconstructionOptions | None,
    smallest_bytes: int | None = None,
    table: WidthTable | None = None,
    trained: str | None = None,
) -> str:
    """SHA-256 of everything that decides the integers; `smallest_bytes` is the size that a budget was
    measured against, `table` the widths of single tensors, `trained` the hash of a training's record whose
    integers are taken.
    """
    return sha256_json(
        {
            "table": table,
            "trained": trained,
            "model": model,
            "calibration": calibration.content_sha256,
            "target": target.sha256,
            "scheme": scheme,
            "algorithm": [algorithm.entry, _algorithm_code(algorithm)],
            "reconstruction": reconstruction,
            "smallest_bytes": smallest_bytes,
            "code": code_sha256(QUANTIZE_CODE),
            "packages": _versions(_QUANTIZE_PACKAGES),
        }
    )


def training_key(
    *, model: str, teacher: str | None, data: str, target: str | None, settings: Mapping[str, Any]
) -> str:
    """SHA-256 of everything that decides the result of a training.

    Args:
        model: key of the float model.
        teacher: key of the teacher, None without one.
        data: SHA-256 of images and labels.
        target: SHA-256 of the target file, None where no widths are chosen.
        settings: of method and loop, plain values.
    """
    return sha256_json(
        {
            "model": model,
            "teacher": teacher,
            "data": data,
            "target": target,
            "settings": settings,
            "threads": compute_threads(),
            "code": code_sha256((*QUANTIZE_CODE, "train")),
            "packages": _versions(_QUANTIZE_PACKAGES),
        }
    )


def unit_key(*, quantized: str, place: int | str) -> str:
    """SHA-256 of one reconstructed unit, or of an MLP, of a quantised model."""
    return sha256_json({"quantized": quantized, "unit": place})


def lowered_key(*, quantized: str, target: Target) -> str:
    """SHA-256 of everything that decides the bytes of the ONNX file."""
    return sha256_json(
        {
            "quantized": quantized,
            "target": target.sha256,
            "code": code_sha256(LOWER_CODE),
            "packages": _versions(_LOWER_PACKAGES),
        }
    )


def float_logits_key(*, model: str, images_sha256: str) -> str:
    """SHA-256 of everything that decides the float model's outputs on some images."""
    return sha256_json({"model": model, "images": images_sha256, "packages": _versions(("torch", "numpy"))})


def float_file_key(*, model: str) -> str:
    """SHA-256 of everything that decides torch's export of a float model: of our own code only what calls the
    exporter.
    """
    return sha256_json(
        {
            "model": model,
            "code": _file_sha256("lower/float_export.py"),
            "packages": _versions(_LOWER_PACKAGES),
        }
    )


def static_file_key(*, float_file: str, images_sha256: str) -> str:
    """SHA-256 of everything that decides quantize_static's file."""
    code, packages = _file_sha256("validate/run/static_quantizer.py"), _versions(("onnx", "onnxruntime"))
    return sha256_json({"float": float_file, "images": images_sha256, "code": code, "packages": packages})


def code_sha256(folders: tuple[str, ...]) -> str:
    """SHA-256 of mixport's own code in these folders of the package: a checkout that was edited never takes
    results of the code before the edit.
    """
    paths = sorted(path for folder in folders for path in (_PACKAGE / folder).rglob("*.py"))
    return sha256_json({path.relative_to(_PACKAGE).as_posix(): sha256_file(path) for path in paths})


def _algorithm_code(algorithm: Algorithm) -> str | None:
    """SHA-256 of an algorithm's module that is not mixport's own; None for those that are."""
    name = algorithm.entry.partition(":")[0]
    if name.split(".")[0] == "mixport":
        return None
    found = find_spec(name)
    return None if found is None or found.origin is None else sha256_file(Path(found.origin))


def _file_sha256(name: str) -> str:
    return sha256_file(_PACKAGE / name)


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    return {name: metadata.version(name) for name in packages}
