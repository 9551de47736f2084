"""What C code prints: dropped inside, and nothing before or behind is lost."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mixport.quantize.budget.quiet_stdout import quiet_stdout

C = ctypes.CDLL(None)
Capture = pytest.CaptureFixture[str]


def put(text: str) -> None:
    """As a C library prints: the line may lie in a buffer of its own for a while."""
    C.puts(text.encode())


def printed(capture: Capture) -> str:
    C.fflush(None)
    return capture.readouterr().out


def test_what_c_code_prints_inside_is_dropped(capfd: Capture) -> None:
    with quiet_stdout():
        put("a line of the solver")
        os.write(1, b"written at once\n")
    assert printed(capfd) == ""


def test_what_lay_in_the_buffer_before_is_written_out(repository: Path) -> None:
    """In a process of its own: PYTHONUNBUFFERED takes C's buffer away, too."""
    code = """
import ctypes
from mixport.quantize.budget.quiet_stdout import quiet_stdout
C = ctypes.CDLL(None)
C.puts(b"before")
with quiet_stdout():
    C.puts(b"inside")
C.puts(b"behind")
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=repository, capture_output=True, check=True
    )
    assert done.stdout.split() == [b"before", b"behind"]


def test_stderr_is_left_alone(capfd: Capture) -> None:
    with quiet_stdout():
        os.write(2, b"a warning\n")
    assert capfd.readouterr().err == "a warning\n"


def test_an_error_inside_is_raised_and_stdout_is_back(capfd: Capture) -> None:
    with pytest.raises(ValueError, match="no solution"), quiet_stdout():
        put("inside")
        raise ValueError("no solution")
    os.write(1, b"behind\n")
    assert printed(capfd) == "behind\n"


def test_one_inside_the_other_stays_quiet_to_the_end_of_the_outer_one(capfd: Capture) -> None:
    with quiet_stdout():
        with quiet_stdout():
            put("innermost")
        put("still inside")
    put("behind")
    assert printed(capfd) == "behind\n"


def test_no_descriptor_is_left_open(capfd: Capture) -> None:
    # The lowest free number: the same one again where everything was closed.
    def lowest_free() -> int:
        found = os.dup(2)
        os.close(found)
        return found

    before = lowest_free()
    for _ in range(3):
        with quiet_stdout():
            pass
    assert lowest_free() == before


def test_a_closed_stdout_stays_closed(capfd: Capture) -> None:
    kept = os.dup(1)
    os.close(1)
    ran = False
    try:
        with quiet_stdout():
            ran = True
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(1)
    finally:
        os.dup2(kept, 1)
        os.close(kept)
    assert ran
