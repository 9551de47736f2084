"""SHA-256 of large files, remembered: a file with the same path, size and times of change is not read again.

MEMORY is a small JSON file in the cache folder. It carries its own SHA-256: losing it, or damage to it, costs
time and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterable
from pathlib import Path

from pydantic import TypeAdapter

from mixport.records.fingerprint import sha256_file
from mixport.storage.sealed_json import seal, unseal

_MAX_MEMORY_BYTES = 16 << 20
_MOST_FILES = 10_000
# A file may change twice within the resolution of its time stamp: what changed just now is not remembered.
_SETTLED_NS = 2_000_000_000

_Memory = dict[str, tuple[int, int, int, str]]
_MEMORY = TypeAdapter(_Memory)


def file_hashes(paths: Iterable[Path], *, memory: Path) -> dict[Path, str]:
    """SHA-256 of each file.

    Args:
        paths: files.
        memory: the JSON file; its folder is made where it is missing.

    Raises:
        OSError: a file cannot be read. That the memory cannot be written is no error.
    """
    known = _read(memory)
    fresh: _Memory = {}
    found: dict[Path, str] = {}
    for path in paths:
        real = path.resolve()
        stat = real.stat()
        # Archives and copies set the time of the content back; that of the entry they cannot.
        now = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        *before, digest = known.get(str(real), (-1, -1, -1, ""))
        if tuple(before) != now:
            digest = sha256_file(real)
            if time.time_ns() - stat.st_mtime_ns > _SETTLED_NS:
                fresh[str(real)] = (*now, digest)
        found[path] = digest
    if fresh:
        _write(memory, {**known, **fresh})
    return found


def _read(memory: Path) -> _Memory:
    try:
        if memory.stat().st_size > _MAX_MEMORY_BYTES:
            return {}
        return _MEMORY.validate_python(unseal(memory.read_bytes()))
    except (OSError, ValueError):
        return {}


def _write(memory: Path, known: _Memory) -> None:
    newest = dict(list(known.items())[-_MOST_FILES:])
    temporary = memory.with_name(f"{memory.name}-{os.getpid()}-{secrets.token_hex(4)}")
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(seal(newest))
            temporary.replace(memory)
        finally:
            temporary.unlink(missing_ok=True)
