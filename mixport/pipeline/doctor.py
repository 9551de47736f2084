"""What is installed, what is missing, and what to type: facts for `mixport doctor`."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from mixport.builtin import generator_folder
from mixport.records.machine import cpu_name, vector_features

Status = Literal["ok", "warning", "missing"]

#: Packages a build imports, and what for.
_PACKAGES = {
    "torch": "model capture and simulation",
    "timm": "timm: models",
    "diffusers": "generated calibration images",
    "transformers": "generated calibration images",
    "onnx": "ONNX files",
    "onnx-ir": "graph passes",
    "onnxscript": "torch's ONNX exporter",
    "onnxruntime": "validation",
    "numpy": "integer arithmetic",
    "safetensors": "weights and the cache",
    "pydantic": "options and target files",
    "jinja2": "the report",
    "matplotlib": "plots of the report",
    "pillow": "images",
    "typer": "the command line",
    "rich": "the command line",
}
_NVIDIA = Path("/proc/driver/nvidia/version")
_PIPELINE_FILE = "model_index.json"
_MIB = 1 << 20
_GIB = 1 << 30
_ENOUGH_GIB = 5.0


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """One thing looked at.

    Attributes:
        what: package, disk, processor ...
        status: ok, warning (works, with a limit) or missing (a build fails).
        value: version, size, or what was found.
        note: what it is for, or what the limit is.
        hint: what to type; None where nothing needs to be done.
    """

    what: str
    status: Status
    value: str
    note: str
    hint: str | None = None


def examine(*, cache: Path) -> tuple[Diagnosis, ...]:
    """Look at this machine. Imports none of the packages it reports on.

    Args:
        cache: folder whose disk must hold stage results; it need not exist.
    """
    return (
        Diagnosis(what="python", status="ok", value=platform.python_version(), note=platform.platform()),
        *(_package(name, note) for name, note in _PACKAGES.items()),
        _generator(generator_folder()),
        _hub(),
        _processor(),
        _gpu(),
        _runtimes(),
        _disk(cache),
    )


def _package(name: str, note: str) -> Diagnosis:
    try:
        return Diagnosis(what=name, status="ok", value=metadata.version(name), note=note)
    except metadata.PackageNotFoundError:
        return Diagnosis(
            what=name, status="missing", value="not installed", note=note, hint=f"pip install {name}"
        )


def _generator(folder: Path) -> Diagnosis:
    """The embedded pipeline; a build without it works with other calibration images."""
    if (folder / _PIPELINE_FILE).is_file():
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        return Diagnosis(
            what="generator",
            status="ok",
            value=f"builtin, {size / _MIB:.1f} MiB",
            note="draws calibration images",
        )
    return Diagnosis(
        what="generator",
        status="warning",
        value="no builtin one",
        note="this installation has no embedded image generator",
        hint="mixport build --generator FOLDER|HUB_ID ..., or --calib images:DIR",
    )


def _hub() -> Diagnosis:
    """Where hub generators and timm's weights are kept; nothing is fetched here."""
    home = os.environ.get("HF_HOME")
    folder = Path(
        os.environ.get("HF_HUB_CACHE")
        or (Path(home) if home else Path.home() / ".cache" / "huggingface") / "hub"
    )
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    kept = "exists" if folder.is_dir() else "empty"
    note = (
        "offline (HF_HUB_OFFLINE): only what is in the cache"
        if offline
        else "hub ids are fetched when first used"
    )
    return Diagnosis(
        what="hub cache", status="ok", value=f"{folder} ({kept})", note=f"{note}; a local folder needs no hub"
    )


def _processor() -> Diagnosis:
    features = vector_features()
    value = f"{cpu_name()} ({', '.join(features) or 'no known vector features'})"
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return Diagnosis(
            what="processor", status="ok", value=value, note=f"{os.cpu_count()} logical processors"
        )
    if "avx512_vnni" in features or "avx_vnni" in features:
        return Diagnosis(what="processor", status="ok", value=value, note="VNNI: 8-bit products are exact")
    return Diagnosis(
        what="processor",
        status="warning",
        value=value,
        note="no VNNI: pairs of full-range 8-bit weights can saturate at 16 bits, 7 bits and fewer cannot",
        hint="mixport build --scheme w4a8 --edge-bits 7 ...",
    )


def _gpu() -> Diagnosis:
    """Whether there is a driver; whether torch can use it shows when images are drawn."""
    try:
        driver = _NVIDIA.read_text(encoding="utf-8", errors="replace").splitlines()[0]
    except (OSError, IndexError):
        return Diagnosis(
            what="gpu", status="ok", value="no NVIDIA driver", note="calibration images are drawn on the CPU"
        )
    return Diagnosis(
        what="gpu",
        status="ok",
        value=driver.removeprefix("NVRM version: ").strip(),
        note="--device auto draws there, if torch sees it",
    )


def _runtimes() -> Diagnosis:
    """Further runtimes that a bundle can be compared on; a build needs none of them."""
    # Here, so that `mixport --help` does not wait for NumPy.
    from mixport.validate.runtimes import survey

    found = survey()
    absent = [one.name for one in found if not one.present]
    return Diagnosis(
        what="runtimes",
        status="ok",
        value=", ".join(one.name for one in found if one.present),
        note=f"not installed: {', '.join(absent)} (mixport runtimes list)" if absent else "can validate here",
    )


def _disk(cache: Path) -> Diagnosis:
    folder = cache.resolve()
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / _GIB
    low = free < _ENOUGH_GIB
    return Diagnosis(
        what="disk",
        status="warning" if low else "ok",
        value=f"{free:.1f} GiB free",
        note=f"holds the cache {cache}",
        hint="mixport calib prune --stages" if low else None,
    )
