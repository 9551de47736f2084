"""The machine: what a result was made with, and where torch computes."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

import mixport
from mixport.records.errors import BadOptionError

#: Packages whose versions can change a result.
_PACKAGES = (
    "torch",
    "timm",
    "diffusers",
    "transformers",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "pillow",
    "scipy",
)
_CPUINFO = Path("/proc/cpuinfo")
_VECTOR_FEATURES = frozenset({"avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})


def describe_environment() -> dict[str, str]:
    """Versions and machine by name, as a manifest states them. Imports none of the packages."""
    versions = {name: metadata.version(name) for name in _PACKAGES}
    return {
        "mixport": mixport.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": cpu_name(),
        "cpu_features": " ".join(vector_features()),
        **versions,
    }


def cpu_name() -> str:
    """The processor as the system names it."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def vector_features() -> tuple[str, ...]:
    """Instruction sets that decide which integer kernels run, of those that the system reports."""
    fields = _cpuinfo()
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return tuple(sorted(_VECTOR_FEATURES.intersection(flags)))


def _cpuinfo() -> dict[str, str]:
    """Fields of the first processor in /proc/cpuinfo; empty where the system has no such file."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n", 1)[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def resolve_device(asked: str) -> str:
    """`cpu` or `cuda` for auto, cpu or cuda. Raises BadOptionError where CUDA is asked for and not there."""
    if asked == "cpu":
        return asked
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if asked == "cuda":
        raise BadOptionError("--device is cuda, and torch finds no CUDA device here", hint="--device cpu")
    return "cpu"


def compute_threads() -> int:
    """How many threads torch computes with on the CPU: sums are split among them, so float results depend on
    their number.
    """
    import torch

    return torch.get_num_threads()
