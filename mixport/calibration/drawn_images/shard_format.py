"""One shard: the images of a batch in one zip file, as lossless PNG, with notes. Read with bounds, checked
before it is believed.

000000.png ... 000063.png  the images, numbered as in the whole sequence
notes.json                 SHA-256 of the pixels, and what the writer said of them

The members are stored, not compressed again: a PNG is.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from mixport.records.fingerprint import sha256_arrays, sha256_bytes, sha256_file
from mixport.storage.images import Pixels
from mixport.storage.npz import ARCHIVE_DAMAGE

_NOTES_FILE = "notes.json"
_MAX_SHARD_BYTES = 4 << 30
_MAX_NOTES_BYTES = 64 << 20
# Time is part of a zip member: a fixed one keeps the bytes of a shard a function of its content.
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
# Fast: the size of natural images hardly depends on the level, and drawing must not wait for zlib.
_PNG_LEVEL = 1
_ENCODERS = 8


class ShardRecord(BaseModel):
    """One shard, as the manifest knows it; `note` is what the writer said of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    first: int = Field(ge=0)
    count: int = Field(ge=1)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    pixels_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    note: dict[str, Any] = Field(default_factory=dict[str, Any])

    @property
    def file(self) -> str:
        """Name inside the folder."""
        return shard_name(self.first, self.count)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The images of one batch.

    Attributes:
        record: what identifies them.
        images: uint8 [count, H, W, 3].
    """

    record: ShardRecord
    images: Pixels


class BadShardError(Exception):
    """A shard that is not whole; the message says what is wrong."""


def shard_name(first: int, count: int) -> str:
    """File name of the shard with images first to first + count - 1."""
    return f"{first:06d}-{first + count - 1:06d}.zip"


def pack(first: int, images: Pixels, *, note: Mapping[str, Any]) -> tuple[bytes, ShardRecord]:
    """The bytes of a shard, and its record.

    Args:
        first: index of the first image.
        images: uint8 [count, H, W, 3].
        note: plain JSON values.
    """
    pixels_sha256 = sha256_arrays({"images": images})
    with ThreadPoolExecutor(max_workers=min(_ENCODERS, os.cpu_count() or 1)) as encoders:
        encoded = list(encoders.map(_encode, images))
    notes = json.dumps({"pixels_sha256": pixels_sha256, "note": dict(note)})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, member in zip(
            [*_image_names(first, len(images)), _NOTES_FILE], [*encoded, notes.encode()], strict=True
        ):
            archive.writestr(zipfile.ZipInfo(name, _ZIP_TIME), member)
    data = buffer.getvalue()
    record = ShardRecord(
        first=first,
        count=len(images),
        bytes=len(data),
        sha256=sha256_bytes(data),
        pixels_sha256=pixels_sha256,
        note=dict(note),
    )
    return data, record


def file_problem(path: Path, record: ShardRecord) -> str | None:
    """How a shard's file differs from its record; None where it does not."""
    try:
        if (size := path.stat().st_size) != record.bytes:
            return f"{size} bytes, recorded {record.bytes}"
        return None if sha256_file(path) == record.sha256 else "content differs from its recorded SHA-256"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"


def read_shard(path: Path, *, first: int, count: int, sha256: str | None = None) -> Shard:
    """Read a shard and check it against `sha256`, and its pixels against what it says of itself."""
    try:
        if path.stat().st_size > _MAX_SHARD_BYTES:
            raise BadShardError(f"larger than {_MAX_SHARD_BYTES} bytes")
        data = path.read_bytes()
        got = sha256_bytes(data)
        if sha256 is not None and got != sha256:
            raise BadShardError("content differs from its recorded SHA-256")
        images, notes = _unpack(data, first=first, count=count)
        record = ShardRecord(first=first, count=count, bytes=len(data), sha256=got, **notes)
    # Pillow raises SyntaxError for a damaged chunk of a PNG.
    except (*ARCHIVE_DAMAGE, KeyError, TypeError, SyntaxError) as error:
        raise BadShardError(
            f"cannot be read: {(str(error).splitlines() or [type(error).__name__])[0]}"
        ) from error
    if sha256_arrays({"images": images}) != record.pixels_sha256:
        raise BadShardError("pixels differ from their recorded SHA-256")
    return Shard(record=record, images=images)


def _unpack(data: bytes, *, first: int, count: int) -> tuple[Pixels, dict[str, Any]]:
    names = _image_names(first, count)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        if [entry.filename for entry in entries] != [*names, _NOTES_FILE]:
            raise ValueError("the images inside are not those of its name")
        # Stored members cannot be larger than the file: nothing here unpacks to more than it is.
        if (
            any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            or entries[-1].file_size > _MAX_NOTES_BYTES
        ):
            raise ValueError("members are compressed, or the notes too large")
        notes = json.loads(archive.read(_NOTES_FILE))
        return np.stack([_decode(archive.read(name)) for name in names]), dict(notes)


def _image_names(first: int, count: int) -> Sequence[str]:
    return [f"{index:06d}.png" for index in range(first, first + count)]


def _encode(image: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=_PNG_LEVEL)
    return buffer.getvalue()


def _decode(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        if image.mode != "RGB":
            raise ValueError(f"an image is {image.mode}, expected RGB")
        return np.asarray(image)
