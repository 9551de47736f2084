"""Start a program, wait for its end, and say what it wrote where it fails."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import IO

from mixport.records.errors import RuntimeUnavailableError

_TAIL_BYTES = 2000


def find_program(*names: str) -> str | None:
    """Path of the first program that is on PATH."""
    return next((path for path in map(shutil.which, names) if path is not None), None)


def run_program(
    command: Sequence[str | Path],
    *,
    what: str,
    timeout_s: float,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    hint: str | None = None,
) -> str:
    """Run a program to its end; its children end with it.

    Args:
        command: program and arguments; no shell reads them.
        what: who needs it, for messages.
        timeout_s: it is stopped after this many seconds.
        environment: added to this process's own.
        folder: where it runs.
        hint: of the error, where it fails.

    Returns:
        what it wrote on stdout and stderr.

    Raises:
        RuntimeUnavailableError: it cannot be started, fails, or takes too long; the end of what it wrote is
            in the message.
    """
    name = Path(command[0]).name
    with (
        tempfile.TemporaryFile() as log,
        started(command, what=what, log=log, environment=environment, folder=folder) as process,
    ):
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise RuntimeUnavailableError(
                f"{what}: {name} was stopped after {timeout_s:g} s", hint=hint
            ) from error
        if code:
            end = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise RuntimeUnavailableError(f"{what}: {name} ended with {end}: {tail(log)}", hint=hint)
        log.seek(0)
        return log.read().decode("utf-8", "replace")


@contextlib.contextmanager
def started(
    command: Sequence[str | Path],
    *,
    what: str,
    log: IO[bytes],
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Generator[subprocess.Popen[bytes]]:
    """A program while it is needed: it and its children are killed at the end. Raises
    RuntimeUnavailableError.
    """
    try:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            cwd=folder,
            start_new_session=sys.platform != "win32",
        )
    except OSError as error:
        raise RuntimeUnavailableError(
            f"{what}: {command[0]} does not start: {error}", hint="mixport runtimes list"
        ) from error
    try:
        yield process
    finally:
        _stop(process)


def tail(log: IO[bytes]) -> str:
    """The end of what a program wrote, as one line."""
    log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
    lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines()]
    return (
        " / ".join("".join(c if c.isprintable() else " " for c in line) for line in lines if line)[
            -_TAIL_BYTES:
        ]
        or "it wrote nothing"
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        # The group outlives its leader where a child goes on, as a browser's do.
        if sys.platform != "win32":
            os.killpg(process.pid, signal.SIGKILL)
        elif process.poll() is None:
            process.kill()
    process.wait()
