"""Keep a C library's own prints out of stdout, which carries data."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Generator
from pathlib import Path

_STDOUT = 1


@contextlib.contextmanager
def quiet_stdout() -> Generator[None]:
    """Drop what C code prints to stdout inside; what it had printed before is written out first.

    HiGHS 1.12, the solver of scipy 1.17, prints a line of its own in some programmes, whatever its log level
    (https://github.com/jump-dev/HiGHS.jl/issues/312). Python's own stdout must not be written to inside.
    """
    try:
        kept = os.dup(_STDOUT)
    except OSError:  # stdout is closed: nothing to keep clean
        yield
        return
    try:
        _flush()
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), _STDOUT)
        yield
    finally:
        _flush()
        os.dup2(kept, _STDOUT)
        os.close(kept)


def _flush() -> None:
    """Write out C's buffers: a pipe is written to when they are full, which may be after the way back."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no C library to be had under this name
        ctypes.CDLL(None).fflush(None)
