"""entry.json of a cache entry: sizes and SHA-256 of its files, metadata, and its own SHA-256."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mixport.records.fingerprint import sha256_file
from mixport.storage.sealed_json import seal, unseal

ENTRY_FILE = "entry.json"
SCHEMA_VERSION = 2

_MAX_ENTRY_BYTES = 16 << 20


class FileRecord(BaseModel):
    """One file of an entry."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class EntryRecord(BaseModel):
    """What an entry says of itself; `files` by path inside it, with forward slashes."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: Literal[2]
    kind: str
    key: str
    created: datetime
    files: dict[str, FileRecord]
    metadata: dict[str, Any] = Field(default_factory=dict[str, Any])


def write_entry(folder: Path, *, kind: str, key: str, metadata: Mapping[str, Any]) -> None:
    """Describe every file that lies in a folder now. Raises OSError."""
    files = {
        path.relative_to(folder).as_posix(): FileRecord(sha256=sha256_file(path), bytes=path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    record = EntryRecord(
        schema_version=SCHEMA_VERSION,
        kind=kind,
        key=key,
        created=datetime.now(UTC).replace(microsecond=0),
        files=files,
        metadata=dict(metadata),
    )
    (folder / ENTRY_FILE).write_bytes(seal(record.model_dump(mode="json")))


def read_entry(folder: Path, *, kind: str, key: str) -> tuple[EntryRecord | None, str]:
    """The record of an entry, or what is wrong with it. Its files are not looked at."""
    path = folder / ENTRY_FILE
    try:
        if path.stat().st_size > _MAX_ENTRY_BYTES:
            return None, f"{ENTRY_FILE}: larger than {_MAX_ENTRY_BYTES} bytes"
        record = EntryRecord.model_validate(unseal(path.read_bytes()))
    except FileNotFoundError:
        return None, f"{ENTRY_FILE}: missing"
    # pydantic's ValidationError is a ValueError.
    except (OSError, ValueError) as error:
        return None, f"{ENTRY_FILE}: cannot be read: {(str(error).splitlines() or [type(error).__name__])[0]}"
    if (record.kind, record.key) != (kind, key):
        return None, f"{ENTRY_FILE}: belongs to {record.kind}/{record.key}"
    return record, ""


def file_problem(folder: Path, name: str, wanted: FileRecord) -> str | None:
    """How a file of an entry differs from its record; None where it does not."""
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or "\\" in name:
        return f"{name!r}: not a path inside the entry"
    path = folder / relative
    try:
        if path.is_symlink() or not path.is_file():
            return f"{name}: missing"
        if (got := path.stat().st_size) != wanted.bytes:
            return f"{name}: {got} bytes, recorded {wanted.bytes}"
        if sha256_file(path) != wanted.sha256:
            return f"{name}: content differs from its recorded SHA-256"
    except OSError as error:
        return f"{name}: cannot be read: {error.strerror or error}"
    return None
