"""A folder of images that grows: one shard a batch, a manifest, and a lock. It knows files, not what the
images show.

FOLDER/000000-000063.zip   the images of one batch as lossless PNG (000000.png ...), uncompressed around them,
and notes.json FOLDER/manifest.json       size and SHA-256 of every shard, and its own SHA-256; written when a
run is done FOLDER/...                 small files of the owner, e.g. what was asked FOLDER.lock
held by the process that adds shards

Shards appear by rename after fsync, so a killed process loses the batch in its hands and nothing else. A
shard that the manifest does not know yet proves itself: notes.json holds the SHA-256 of its pixels.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field

from mixport.calibration.drawn_images.shard_format import (
    BadShardError,
    Shard,
    ShardRecord,
    file_problem,
    pack,
    read_shard,
    shard_name,
)
from mixport.records.errors import StoreError
from mixport.records.fingerprint import sha256_json
from mixport.storage import atomic
from mixport.storage.images import Pixels
from mixport.storage.sealed_json import seal, unseal
from mixport.storage.store import Damaged

MANIFEST_FILE = "manifest.json"

_SHARD = re.compile(r"(\d{6,12})-(\d{6,12})\.zip")
_TEMPORARY = re.compile(r"\.new-[0-9a-f]{8}")
_MAX_MANIFEST_BYTES = 1 << 30
_POLL_S = 1.0


class ShardIndex(BaseModel):
    """What a folder holds since the last finished run.

    `content_sha256` is the SHA-256 over the shards' pixel hashes in index order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: Literal[2] = 2
    count: int = Field(ge=0)
    content_sha256: str
    metadata: dict[str, Any] = Field(default_factory=dict[str, Any])
    shards: tuple[ShardRecord, ...]


class ShardFolder:
    """The shards of one recipe, `batch` images each; to be changed only inside `lock`.

    Args:
        path: the folder; made at the first write.
        batch: images of a shard; shard k holds images k * batch to k * batch + batch - 1.
        cache: root of the cache, named in errors; damaged shards move to its `.damaged`.

    Attributes:
        damaged: files that this object took out of the way.
    """

    def __init__(self, path: Path, *, batch: int, cache: Path) -> None:
        self.path, self.batch, self.cache = path, batch, cache
        self.damaged: list[Damaged] = []
        self._records: dict[int, ShardRecord] = {}
        self._in_manifest: dict[int, ShardRecord] = {}

    @property
    def sealed(self) -> bool:
        """Whether the manifest says what `has` and `write` found since the lock was taken."""
        return self._records == self._in_manifest

    @contextlib.contextmanager
    def lock(self, *, on_wait: Callable[[], None] | None = None) -> Generator[None]:
        """Be the only process that changes the folder; `on_wait` is called about every second while another
        one is.

        Raises:
            StoreError: the cache cannot be written.
        """
        with self._writing():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(lock_file(self.path))
            while True:
                try:
                    lock.acquire(timeout=_POLL_S)
                    break
                except Timeout:
                    if on_wait is not None:
                        on_wait()
        try:
            with self._writing():
                self.path.mkdir(exist_ok=True)
                self._open()
            yield
        finally:
            # Where nothing came of it, nothing stays.
            with contextlib.suppress(OSError):
                self.path.rmdir()
            lock.release()

    def has(self, first: int) -> bool:
        """Whether the shard that starts at image `first` is there and whole. A damaged one is taken out of
        the way and noted.
        """
        path = self.path / shard_name(first, self.batch)
        if not path.is_file():
            self._records.pop(first, None)
            return False
        known = self._records.get(first)
        problem = file_problem(path, known) if known is not None else None
        if known is None:
            try:
                self._records[first] = read_shard(path, first=first, count=self.batch).record
            except BadShardError as bad:
                problem = str(bad)
        if problem is None:
            return True
        self._records.pop(first, None)
        self._set_aside(path, problem)
        return False

    def write(self, first: int, images: Pixels, *, note: Mapping[str, Any]) -> None:
        """Add a shard.

        Args:
            first: index of its first image, a multiple of `batch`.
            images: uint8 [batch, H, W, 3].
            note: plain JSON values.

        Raises:
            StoreError: the cache cannot be written.
        """
        data, record = pack(first, images, note=note)
        self.write_file(record.file, data)
        self._records[first] = record

    def record(self, first: int) -> ShardRecord:
        """What identifies a shard that `has` found whole."""
        return self._records[first]

    def read(self, first: int) -> Shard:
        """A shard that `has` found whole. Raises StoreError where it is no more."""
        path = self.path / shard_name(first, self.batch)
        try:
            return read_shard(path, first=first, count=self.batch, sha256=self._records[first].sha256)
        except BadShardError as bad:
            raise StoreError(
                f"{path}: {bad}, though it was whole a moment ago", hint="run the same command again"
            ) from bad

    def write_file(self, name: str, data: bytes) -> None:
        """A file of the folder, whole or not at all, and on the disk at the return. Raises StoreError."""
        temporary = self.path / f".new-{secrets.token_hex(4)}"
        with self._writing():
            try:
                with temporary.open("wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                temporary.replace(self.path / name)
            finally:
                temporary.unlink(missing_ok=True)
            atomic.sync_folder(self.path)

    def set_aside(self, name: str, problem: str) -> None:
        """Take a file that is not what it should be out of the way, and note it."""
        self._records = {first: one for first, one in self._records.items() if one.file != name}
        self._set_aside(self.path / name, problem)

    def seal(self, *, metadata: Mapping[str, Any]) -> ShardIndex:
        """Write the manifest of every whole shard. Raises StoreError."""
        found = [first for first, _ in shard_files(self.path, batch=self.batch)]
        records = tuple(self._records[first] for first in found if first in self._records or self.has(first))
        manifest = ShardIndex(
            count=sum(one.count for one in records),
            content_sha256=_content_sha256(records),
            metadata=dict(metadata),
            shards=records,
        )
        self.write_file(MANIFEST_FILE, seal(manifest.model_dump(mode="json")))
        self._in_manifest = {one.first: one for one in records}
        return manifest

    def _open(self) -> None:
        # The lock is ours: whatever is half written has no writer any more.
        for left in self.path.iterdir():
            if _TEMPORARY.fullmatch(left.name):
                left.unlink(missing_ok=True)
        manifest, problem = read_manifest(self.path)
        if manifest is None and problem is not None:
            self._set_aside(self.path / MANIFEST_FILE, problem)
        shards = manifest.shards if manifest is not None else ()
        self._in_manifest = {one.first: one for one in shards if one.count == self.batch}
        self._records = dict(self._in_manifest)

    def _set_aside(self, path: Path, problem: str) -> None:
        moved = (
            self.cache
            / ".damaged"
            / f"{self.path.parent.name}-{self.path.name}-{path.stem}-{secrets.token_hex(4)}{path.suffix}"
        )
        with self._writing():
            moved.parent.mkdir(parents=True, exist_ok=True)
            path.replace(moved)
        self.damaged.append(
            Damaged(
                kind=self.path.parent.name,
                key=self.path.name,
                problems=(f"{path.name}: {problem}",),
                moved_to=moved,
            )
        )

    @contextlib.contextmanager
    def _writing(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"cache {self.cache} cannot be written: {error.strerror or error}",
                hint="free space on that disk, or choose another folder with --cache DIR",
            ) from error


def shard_files(path: Path, *, batch: int | None = None) -> list[tuple[int, int]]:
    """(first, count) of the shards in a folder by their names, ascending; of one batch size, or of all."""
    try:
        names = [match for one in path.iterdir() if (match := _SHARD.fullmatch(one.name))]
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = sorted((int(match[1]), int(match[2]) - int(match[1]) + 1) for match in names)
    return [(first, count) for first, count in found if count > 0 and batch in (None, count)]


def read_manifest(path: Path) -> tuple[ShardIndex | None, str | None]:
    """The manifest of a folder, or what is wrong with it; neither where there is none yet."""
    file = path / MANIFEST_FILE
    try:
        if file.stat().st_size > _MAX_MANIFEST_BYTES:
            return None, f"larger than {_MAX_MANIFEST_BYTES} bytes"
        manifest = ShardIndex.model_validate(unseal(file.read_bytes()))
    except FileNotFoundError:
        return None, None
    # pydantic's ValidationError is a ValueError.
    except (OSError, ValueError) as error:
        return None, f"cannot be read: {(str(error).splitlines() or [''])[0]}"
    if manifest.content_sha256 != _content_sha256(manifest.shards):
        return None, "content_sha256 does not fit its shards"
    return manifest, None


def verify_folder(path: Path) -> list[str]:
    """What is wrong with a folder, one line each; changes nothing. Shards of an unfinished run count too."""
    manifest, problem = read_manifest(path)
    problems = [f"{MANIFEST_FILE}: {problem}"] if problem is not None else []
    known = {one.first: one for one in manifest.shards} if manifest is not None else {}
    found = dict(shard_files(path))
    for first, record in sorted(known.items()):
        wrong = file_problem(path / record.file, record) if first in found else "missing"
        problems += [f"{record.file}: {wrong}"] if wrong is not None else []
    for first, count in sorted(found.items()):
        if first not in known:
            try:
                read_shard(path / shard_name(first, count), first=first, count=count)
            except BadShardError as bad:
                problems.append(f"{shard_name(first, count)}: {bad}")
    return problems


def _content_sha256(records: Sequence[ShardRecord]) -> str:
    return sha256_json([[one.first, one.count, one.pixels_sha256] for one in records])


def lock_file(path: Path) -> Path:
    """The lock of a folder; beside it, so that it outlives the folder's removal."""
    return path.with_name(f"{path.name}.lock")
