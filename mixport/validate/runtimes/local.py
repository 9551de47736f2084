"""Runtimes that need nothing fetched: this Python's own onnxruntime, and any command line."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from mixport.records.errors import BadInputError
from mixport.validate.runtimes.fetching.wheel import environment_of
from mixport.validate.runtimes.folder_runtime import FolderRuntime
from mixport.validate.runtimes.names import NATIVE
from mixport.validate.runtimes.pins import RUNNER
from mixport.validate.runtimes.processes import run_program

COMMAND = "command:"

_TIMEOUT_S = 4 * 3600.0


def open_native(version: str | None = None) -> FolderRuntime:
    """The runner in a process of its own, under this Python.

    Args:
        version: of onnxruntime; the installed one where None.

    Raises:
        RuntimeUnavailableError: that version is not fetched.
    """
    name = NATIVE if version is None else f"{NATIVE}@{version}"
    environment = environment_of(version, runtime=name)

    def execute(folder: Path) -> None:
        run_program(
            [sys.executable, folder / RUNNER.name, folder],
            what=f"runtime {name}",
            timeout_s=_TIMEOUT_S,
            environment={**environment, "PYTHONDONTWRITEBYTECODE": "1"},
            folder=folder,
            hint="mixport doctor",
        )

    return FolderRuntime(name=name, execute=execute, version=version)


def open_command(name: str) -> FolderRuntime:
    """`command:LINE`: LINE is run without a shell; {job} in it becomes the job folder, {runner} the runner's
    path.

    Raises:
        BadInputError: LINE cannot be split into words, or has no {job}.
    """
    line = name.removeprefix(COMMAND)
    hint = "--runtime 'command:python3 {runner} {job}'"
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise BadInputError(f"runtime {name}: {error}", hint=hint) from error
    if not words or not any("{job}" in word for word in words):
        raise BadInputError(
            f"runtime {name} does not say where the job folder goes, allowed is a command line with {{job}}",
            hint=hint,
        )

    def execute(folder: Path) -> None:
        filled = [
            word.replace("{runner}", str(folder / RUNNER.name)).replace("{job}", str(folder))
            for word in words
        ]
        run_program(
            filled,
            what=f"runtime {name}",
            timeout_s=_TIMEOUT_S,
            hint="run the command by hand on a job folder",
        )

    return FolderRuntime(name=name, execute=execute)
