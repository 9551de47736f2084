"""Folders that appear whole or not at all: fill a temporary folder, then rename it.

A temporary folder is named `<label>-<pid>-<8 hex digits>` and locked while its process lives, so that a later
run can tell work in progress from what a killed process left behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Generator
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_LEFTOVER = re.compile(r".+-(\d{1,10})-[0-9a-f]{8}")
_ABANDONED_AFTER_S = 3600.0
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
#: Errors that mean "no room, or not allowed to write here", whoever met them.
WRITE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO})


@contextlib.contextmanager
def temporary_folder(parent: Path, *, label: str) -> Generator[Path]:
    """A new folder inside an existing `parent`, removed at the end unless it was renamed by then. Raises
    OSError.
    """
    folder = parent / f"{label}-{os.getpid()}-{secrets.token_hex(4)}"
    folder.mkdir()
    lock = None
    try:
        lock = _lock(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def sweep(parent: Path, *, label: str = "") -> list[Path]:
    """Remove temporary folders of `parent` (whose label starts with `label`) that no living process works on;
    give their paths.
    """
    if not parent.is_dir():
        return []
    swept: list[Path] = []
    for folder in sorted(parent.iterdir()):
        match = _LEFTOVER.fullmatch(folder.name)
        if (
            match
            and folder.name.startswith(label)
            and folder.is_dir()
            and _is_stale(folder, pid=int(match[1]))
        ):
            shutil.rmtree(folder, ignore_errors=True)
            swept.append(folder)
    return swept


def sync_tree(folder: Path) -> None:
    """Force a folder's files, then its folders, to the disk. Raises OSError, so that a late write error is
    not lost.
    """
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync(Path(root, name))
        sync_folder(Path(root))


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk, where the system can."""
    if sys.platform != "win32":
        _sync(folder)


def put(new: Path, out: Path) -> None:
    """A filled temporary folder takes the place of `out`, which is free, an empty folder, or one to replace.
    Raises OSError.
    """
    if out.is_dir() and any(out.iterdir()):
        swap(new, out)
    else:
        new.rename(out)
    sync_folder(out.parent)


def swap(new: Path, old: Path) -> None:
    """Exchange two folders of one file system; `old` never disappears where the system can exchange names.
    Raises OSError.
    """
    if _exchange(new, old):
        return
    aside = new.with_name(f"{new.name}-old")
    old.rename(aside)
    try:
        new.rename(old)
    except OSError:
        aside.rename(old)
        raise
    aside.rename(new)


def _exchange(first: Path, second: Path) -> bool:
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    return rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _lock(folder: Path) -> int | None:
    """Hold the folder for this process; None where it is held already. The kernel lets go when the process
    dies.
    """
    if sys.platform == "win32":
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError:
        # A file system without locks: the process id decides alone.
        return handle
    return handle


def _is_stale(folder: Path, *, pid: int) -> bool:
    # The age covers a process id that is in use again, as in a container whose processes always get the same
    # numbers.
    try:
        old = time.time() - folder.stat().st_mtime > _ABANDONED_AFTER_S
        if not old and _is_alive(pid):
            return False
        handle = None if sys.platform == "win32" else _lock(folder)
    except OSError:
        return False
    if handle is None:
        return sys.platform == "win32"
    os.close(handle)
    return True


def _is_alive(pid: int) -> bool:
    if sys.platform == "win32":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
