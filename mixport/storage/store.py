"""Records on disk, by kind and key: written whole or not at all, verified on every read.

ROOT/<kind>/<key>/entry.json     what the entry holds: sizes and SHA-256 of its files, metadata, and its own
SHA-256 ROOT/<kind>/<key>/...            the files ROOT/.tmp/                       work in progress
ROOT/.damaged/                   entries that failed their check, kept for a look
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mixport.records.errors import BadInputError, StoreError
from mixport.storage import atomic
from mixport.storage.entry import EntryRecord, file_problem, read_entry, write_entry

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,127}")
_PUBLISH_ATTEMPTS = 8


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What an entry says of itself; its files are not checked.

    Attributes:
        kind: family of records, e.g. calibration.
        key: SHA-256 of what was asked.
        path: its folder.
        created: UTC; None where entry.json cannot be read.
        bytes: sum of its files, as recorded.
        metadata: what the writer added.
    """

    kind: str
    key: str
    path: Path
    created: datetime | None
    bytes: int
    metadata: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Damaged:
    """An entry that failed its check and was taken out of the way.

    Attributes:
        kind: of the entry.
        key: of the entry.
        problems: what was wrong, one line each.
        moved_to: where it lies now; None where it could not be moved.
    """

    kind: str
    key: str
    problems: tuple[str, ...]
    moved_to: Path | None


class Store:
    """A folder of verified records. Several processes may use it at once.

    Attributes:
        root: the cache folder; made at the first write.
        damaged: entries that this object found damaged, oldest first.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.damaged: list[Damaged] = []

    def get(self, kind: str, key: str) -> Path | None:
        """The entry's folder when every file has its recorded size and SHA-256, else None.

        A damaged entry moves to `.damaged` and is noted in `damaged`, so that the caller rebuilds it.

        Raises:
            StoreError: a name that is not allowed.
        """
        folder = self._folder(kind, key)
        if not folder.is_dir():
            return None
        problems = self.verify(kind, key)
        if not problems:
            return folder
        # Another process may have removed the entry meanwhile: then it is missing, not damaged.
        if folder.is_dir():
            self._set_aside(kind, key, problems)
        return None

    def metadata(self, kind: str, key: str) -> Mapping[str, Any]:
        """What the writer of an entry added. Raises StoreError where the entry cannot be read."""
        record, problem = self._record(kind, key)
        if record is None:
            raise StoreError(
                f"cache entry {kind}/{key}: {problem}", hint="run the same command again to rebuild it"
            )
        return record.metadata

    @contextlib.contextmanager
    def create(self, kind: str, key: str, *, metadata: Mapping[str, Any] | None = None) -> Generator[Path]:
        """A temporary folder to fill; at the normal end of the block it becomes the entry in one rename.

        `metadata` (plain JSON values) is read at the end, so the block may still fill the mapping it passed.
        After an exception nothing stays. Where another process was first with a whole entry, that one is
        kept.

        Raises:
            StoreError: the disk is full or does not let us write, or a name is not allowed.
        """
        folder = self._folder(kind, key)
        temporary_root = self.root / ".tmp"
        with self._writing():
            temporary_root.mkdir(parents=True, exist_ok=True)
            atomic.sweep(temporary_root)
        with self._writing(), atomic.temporary_folder(temporary_root, label=f"{kind}-{key}") as temporary:
            yield temporary
            try:
                write_entry(temporary, kind=kind, key=key, metadata=metadata or {})
                atomic.sync_tree(temporary)
                self._publish(temporary, folder, kind=kind, key=key)
            except OSError as error:
                raise self._write_error(error) from error

    def entries(self, kind: str | None = None) -> list[Entry]:
        """Every entry, or those of one kind, by kind and key. Reads entry.json only."""
        kinds = [kind] if kind is not None else _names(self.root)
        return [
            self._describe(one, key) for one in kinds for key in _names(self.root / _checked(one, "kind"))
        ]

    def verify(self, kind: str, key: str) -> list[str]:
        """What is wrong with an entry, one line each; empty when entry.json and every file have their
        recorded size and SHA-256.
        """
        folder = self._folder(kind, key)
        record, problem = self._record(kind, key)
        if record is None:
            return [problem]
        return [line for name, wanted in record.files.items() if (line := file_problem(folder, name, wanted))]

    def remove(self, kind: str, key: str) -> None:
        """Delete an entry; it disappears in one step. Raises StoreError where there is none."""
        folder = self._folder(kind, key)
        if not folder.is_dir():
            raise StoreError(f"no cache entry {kind}/{key} in {self.root}", hint="mixport calib list")
        with self._writing():
            moved = self._move_to(".tmp", kind, key)
            shutil.rmtree(moved, ignore_errors=True)

    def _folder(self, kind: str, key: str) -> Path:
        return self.root / _checked(kind, "kind") / _checked(key, "key")

    def _record(self, kind: str, key: str) -> tuple[EntryRecord | None, str]:
        return read_entry(self._folder(kind, key), kind=kind, key=key)

    def _describe(self, kind: str, key: str) -> Entry:
        record, _ = self._record(kind, key)
        return Entry(
            kind=kind,
            key=key,
            path=self._folder(kind, key),
            created=record.created if record else None,
            bytes=sum(file.bytes for file in record.files.values()) if record else 0,
            metadata=record.metadata if record else {},
        )

    def _publish(self, temporary: Path, folder: Path, *, kind: str, key: str) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(_PUBLISH_ATTEMPTS):
            with contextlib.suppress(OSError):
                temporary.rename(folder)
                atomic.sync_folder(folder.parent)
                return
            if not folder.is_dir():
                temporary.rename(folder)
                return
            problems = self.verify(kind, key)
            if not problems:
                return
            self._set_aside(kind, key, problems)
        raise StoreError(f"cache entry {folder} cannot be replaced", hint=f"remove the folder {folder}")

    def _set_aside(self, kind: str, key: str, problems: list[str]) -> None:
        try:
            moved = self._move_to(".damaged", kind, key)
        except OSError:
            moved = None
        self.damaged.append(Damaged(kind=kind, key=key, problems=tuple(problems), moved_to=moved))

    def _move_to(self, place: str, kind: str, key: str) -> Path:
        moved = self.root / place / f"{kind}-{key}-{os.getpid()}-{secrets.token_hex(4)}"
        moved.parent.mkdir(parents=True, exist_ok=True)
        return self._folder(kind, key).rename(moved)

    @contextlib.contextmanager
    def _writing(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            # The block of `create` may also fail on a source file: that error is the caller's to explain.
            if error.errno not in atomic.WRITE_ERRORS and not self._is_ours(error):
                raise
            raise self._write_error(error) from error

    def _is_ours(self, error: OSError) -> bool:
        return isinstance(error.filename, str) and Path(error.filename).is_relative_to(self.root)

    def _write_error(self, error: OSError) -> StoreError:
        return StoreError(
            f"cache {self.root} cannot be written: {error.strerror or error}",
            hint="free space on that disk, or choose another folder with --cache DIR",
        )


def _checked(name: str, what: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise StoreError(
            f"cache {what} is {name!r}, allowed 1 to 128 of a-z, 0-9, _ and -, starting with a "
            "letter or digit"
        )
    return name


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise BadInputError(
            f"cache folder {folder} cannot be read: {error.strerror}", hint="choose another with --cache DIR"
        ) from error
