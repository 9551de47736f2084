"""Qualcomm's HTP simulator: onnxruntime-qnn in the cache folder, with the onnxruntime that it was measured
with. Its x86-64 Linux wheel holds the simulator; what that computes was not compared with silicon.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from mixport.records.errors import RuntimeUnavailableError
from mixport.records.runtime import RuntimeJob
from mixport.validate.runtimes.fetching.cache_folder import installing, kept
from mixport.validate.runtimes.fetching.wheel import fetch_wheels
from mixport.validate.runtimes.folder_runtime import FolderRuntime
from mixport.validate.runtimes.pins import ONNXRUNTIME_OF_QNN, ONNXRUNTIME_QNN, RUNNER
from mixport.validate.runtimes.processes import run_program

if TYPE_CHECKING:
    from mixport.validate.runtimes.codes_at_ends import CodedJob

_TIMEOUT_S = 3600.0
ARCHES = MappingProxyType({"qnn-htp68": 68, "qnn-htp73": 73})
"""htp_arch by name: 68 stands for 69 too, and 73 for 75, 79 and 81."""


def folder_of() -> str:
    """Name of the wheels' folder in the cache."""
    return f"{sys.implementation.cache_tag}-onnxruntime-qnn-{ONNXRUNTIME_QNN}"


def is_here() -> bool:
    """True where the wheels are fetched."""
    return kept(folder_of()) is not None


def open_qnn(name: str) -> FolderRuntime:
    """The simulator for one architecture, with nothing allowed to run beside it.

    Args:
        name: of ARCHES.

    Raises:
        RuntimeUnavailableError: not fetched, or another system than x86-64 Linux.
    """
    _check_system(name)
    folder = kept(folder_of())
    if folder is None:
        raise RuntimeUnavailableError(
            f"runtime {name} is not installed: onnxruntime-qnn {ONNXRUNTIME_QNN} is missing",
            hint=f"mixport runtimes install {name}",
        )

    def execute(job: Path) -> None:
        run_program(
            [sys.executable, job / RUNNER.name, job],
            what=f"runtime {name} (onnxruntime-qnn {ONNXRUNTIME_QNN})",
            timeout_s=_TIMEOUT_S,
            environment={"PYTHONPATH": str(folder / "site"), "PYTHONDONTWRITEBYTECODE": "1"},
            folder=job,
            hint=f"mixport runtimes install {name}",
        )

    return FolderRuntime(
        name=name,
        execute=execute,
        version=ONNXRUNTIME_OF_QNN,
        emulated=True,
        provider=MappingProxyType({"name": "qnn-htp", "arch": str(ARCHES[name])}),
        arithmetic=f"htp{ARCHES[name]}",
        coded=_coded,
    )


def _coded(job: RuntimeJob) -> CodedJob:
    from mixport.validate.runtimes.codes_at_ends import codes_at_ends

    return codes_at_ends(job)


def install_qnn(step: Callable[[int], None]) -> None:
    """Fetch both wheels. Raises RuntimeUnavailableError."""
    _check_system(next(iter(ARCHES)))
    with installing(folder_of()) as folder:
        fetch_wheels(
            (f"onnxruntime=={ONNXRUNTIME_OF_QNN}", f"onnxruntime-qnn=={ONNXRUNTIME_QNN}"),
            ("--target", str(folder / "site")),
            what=f"fetching onnxruntime-qnn {ONNXRUNTIME_QNN}",
        )
    step(1)


def _check_system(name: str) -> None:
    system = (platform.system(), platform.machine())
    if system != ("Linux", "x86_64"):
        raise RuntimeUnavailableError(
            f"runtime {name} has a simulator for x86-64 Linux alone, not for {' '.join(system)}",
            hint="mixport runtimes list",
        )
