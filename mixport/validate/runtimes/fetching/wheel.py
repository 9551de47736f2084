"""Another version of onnxruntime for this Python: the wheel alone, or with the NumPy that an old one needs,
in the cache folder, found before the installed one.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Mapping
from importlib import metadata

from mixport.records.errors import RuntimeUnavailableError
from mixport.validate.runtimes.fetching.cache_folder import installing, kept
from mixport.validate.runtimes.pins import FIRST_WITH_NUMPY_2, NUMPY_1
from mixport.validate.runtimes.processes import run_program

_PIP_TIMEOUT_S = 1800.0


def own_version() -> str | None:
    """Version of the onnxruntime that is installed for this Python, None where there is none of that name."""
    try:
        return metadata.version("onnxruntime")
    except metadata.PackageNotFoundError:
        return None


def is_here(version: str | None) -> bool:
    """True where nothing has to be fetched to run this version; None is the one that is installed."""
    return version in (None, own_version()) or kept(folder_of(version)) is not None


def numpy_beside(version: str | None) -> str | None:
    """Version of NumPy that is fetched with this onnxruntime; None where the installed one does."""
    if version is None:
        return None
    major, minor = version.split(".")[:2]
    return None if (int(major), int(minor)) >= FIRST_WITH_NUMPY_2 else NUMPY_1


def folder_of(version: str | None) -> str:
    """Name of the wheel's folder in the cache: a wheel is made for one Python and one processor."""
    numpy = numpy_beside(version)
    beside = "" if numpy is None else f"-numpy-{numpy}"
    return f"{sys.implementation.cache_tag}-{platform.machine().lower()}-onnxruntime-{version}{beside}"


def environment_of(version: str | None, *, runtime: str) -> Mapping[str, str]:
    """What this Python's environment needs to import that version.

    Args:
        version: None for the installed one.
        runtime: name, for messages.

    Raises:
        RuntimeUnavailableError: another version than the installed one, and not fetched.
    """
    if version in (None, own_version()):
        return {}
    folder = kept(folder_of(version))
    if folder is None:
        raise RuntimeUnavailableError(
            f"runtime {runtime} is not installed: onnxruntime {version} for this Python is missing",
            hint=f"mixport runtimes install {runtime}",
        )
    before = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": f"{folder / 'site'}{os.pathsep}{before}" if before else str(folder / "site")}


def install_wheel(version: str, step: Callable[[int], None]) -> None:
    """Fetch the wheel for this Python. Raises RuntimeUnavailableError."""
    numpy = numpy_beside(version)
    wanted = (f"onnxruntime=={version}", *(() if numpy is None else (f"numpy=={numpy}",)))
    with installing(folder_of(version)) as folder:
        fetch_wheels(
            wanted,
            ("--target", str(folder / "site")),
            what=f"fetching {' and '.join(wanted)} for this Python",
        )
    step(1)


def fetch_wheels(wanted: tuple[str, ...], options: tuple[str, ...], *, what: str) -> None:
    """Let pip unpack wheels without what they depend on: a runner needs NumPy and onnxruntime only. Raises
    RuntimeUnavailableError.
    """
    run_program(
        [
            *(
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--only-binary=:all:",
                "--no-compile",
            ),
            *options,
            *wanted,
        ],
        what=what,
        timeout_s=_PIP_TIMEOUT_S,
        hint="check that pip works here, and finds that version for this Python: python -m pip download "
        f"--no-deps {wanted[0]}",
    )
