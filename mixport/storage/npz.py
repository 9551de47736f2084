"""The .npz container, written with the same bytes every time and read without trust.

Headers are checked before anything is allocated, nothing is unpickled, and no member is ever extracted to a
path.
"""

from __future__ import annotations

import contextlib
import io
import math
import zipfile
import zlib
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mixport.records.errors import BadInputError

MAX_ARRAY_BYTES = 8 << 30

_EPOCH = (1980, 1, 1, 0, 0, 0)
_ZIP64_BYTES = 1 << 31
_UNIX = 3
_MAX_HEADER_BYTES = 1 << 16
_CHUNK_BYTES = 1 << 20
_NUMBER_KINDS = "biuf"
_SAVE_HINT = "save it with numpy.savez_compressed(FILE, NAME=array)"
ARCHIVE_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
)
"""What zipfile, zlib and NumPy raise on damaged or hostile archives: a flipped bit may say that a member is
encrypted, or packed in a way that nobody knows.
"""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a member says of its array before it is read.

    Attributes:
        shape: of the array.
        dtype: never an object type.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def bytes(self) -> int:
        """Size of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a compressed .npz that `numpy.load` reads; equal arrays in equal order give equal bytes.

    Raises:
        ValueError: a name that the container cannot hold, or an object array.
        OSError: the disk is full.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            if (
                not name
                or "\0" in name
                or "\\" in name
                or (name.endswith(".npy") and name[: -len(".npy")] in arrays)
            ):
                raise ValueError(f"{name!r} cannot name an array in {path.name}")
            # ZipInfo would cut or change some names, and stamp the current time and the system's file mode.
            member = zipfile.ZipInfo(f"{name}.npy", date_time=_EPOCH)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.create_system = _UNIX
            member.external_attr = 0o644 << 16
            with archive.open(member, "w", force_zip64=array.nbytes >= _ZIP64_BYTES) as stream:
                np.lib.format.write_array(
                    stream, np.asarray(array, order="C"), version=(1, 0), allow_pickle=False
                )


def read_npz(
    path: Path, *, max_bytes: int = MAX_ARRAY_BYTES, hint: str = _SAVE_HINT
) -> dict[str, NDArray[Any]]:
    """Every array of a .npz, at most `max_bytes` in all.

    Raises:
        BadInputError: missing, damaged, too large, or an object array.
    """
    with open_npz(path, hint=hint) as archive:
        total = sum(archive.header(name).bytes for name in archive.names)
        if total > max_bytes:
            raise BadInputError(f"{path}: {total} bytes of arrays, allowed {max_bytes}", hint=hint)
        return {name: archive.read(name) for name in archive.names}


@contextlib.contextmanager
def open_npz(path: Path, *, hint: str = _SAVE_HINT) -> Generator[NpzReader]:
    """Open a .npz for checked reading; errors about its content carry the hint. Raises BadInputError."""
    if not path.is_file():
        raise BadInputError(f"{path}: no such file", hint="check the path")
    with contextlib.ExitStack() as stack:
        with _explained(path, hint):
            archive = stack.enter_context(zipfile.ZipFile(path))
        yield NpzReader(path, archive, hint=hint)


class NpzReader:
    """Arrays of an open .npz by name. Every method raises BadInputError for damage and for names that are not
    there.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile, *, hint: str) -> None:
        self.path = path
        self._hint = hint
        self._archive = archive

    @property
    def names(self) -> list[str]:
        """Names of the arrays, in the file's order."""
        return [name.removesuffix(".npy") for name in self._archive.namelist() if name.endswith(".npy")]

    def header(self, name: str) -> Header:
        """Shape and dtype of an array, checked against the member's size."""
        with _explained(self.path, self._hint), self._open(name) as (header, _):
            return header

    def read(self, name: str) -> NDArray[Any]:
        """One whole array, at most MAX_ARRAY_BYTES."""
        with _explained(self.path, self._hint), self._open(name) as (header, stream):
            if header.bytes > MAX_ARRAY_BYTES:
                raise BadInputError(
                    f"{self.path}: {name} has {header.bytes} bytes, allowed {MAX_ARRAY_BYTES}",
                    hint=self._hint,
                )
            values = np.empty(header.bytes, np.uint8)
            for start in range(0, header.bytes, _CHUNK_BYTES):
                piece = values[start : start + _CHUNK_BYTES]
                piece[:] = np.frombuffer(_read_exactly(stream, piece.size), np.uint8)
            _expect_end(stream)
        return values.view(header.dtype).reshape(header.shape)

    def rows(self, name: str) -> Iterator[NDArray[Any]]:
        """Slices along axis 0, one at a time, so that memory holds one. They are read-only."""
        with _explained(self.path, self._hint), self._open(name) as (header, stream):
            row = Header(shape=header.shape[1:], dtype=header.dtype)
            for _ in range(header.shape[0]):
                yield np.frombuffer(_read_exactly(stream, row.bytes), row.dtype).reshape(row.shape)
            _expect_end(stream)

    @contextlib.contextmanager
    def _open(self, name: str) -> Generator[tuple[Header, IO[bytes]]]:
        try:
            member = self._archive.getinfo(f"{name}.npy")
        except KeyError:
            raise BadInputError(
                f"{self.path}: no array {name!r}, got {', '.join(self.names) or 'no arrays'}", hint=self._hint
            ) from None
        with self._archive.open(member) as stream:
            header, header_bytes = _read_header(stream, f"{self.path}: {name}", self._hint)
            if header_bytes + header.bytes != member.file_size:
                raise EOFError(
                    f"{name} has {member.file_size - header_bytes} bytes, its header says {header.bytes}"
                )
            yield header, stream


@contextlib.contextmanager
def _explained(path: Path, hint: str) -> Generator[None]:
    try:
        yield
    except ARCHIVE_DAMAGE as error:
        raise BadInputError(f"{path}: not a whole .npz file: {error}", hint=hint) from error


def _read_header(stream: IO[bytes], where: str, hint: str) -> tuple[Header, int]:
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"array format {version}, allowed 1.0 and 2.0")
    length_bytes = _read_exactly(stream, 2 if version == (1, 0) else 4)
    length = int.from_bytes(length_bytes, "little")
    if length > _MAX_HEADER_BYTES:
        raise ValueError(f"array header of {length} bytes, allowed {_MAX_HEADER_BYTES}")
    # The length was read to know where the values start; NumPy's reader wants to see it too.
    replay = io.BytesIO(length_bytes + _read_exactly(stream, length))
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(replay)
    if dtype.kind not in _NUMBER_KINDS:
        raise BadInputError(f"{where} has dtype {dtype}, allowed bool, integers and floats", hint=hint)
    if fortran and len(shape) > 1:
        raise BadInputError(
            f"{where} is in Fortran order, allowed C order", hint="save numpy.ascontiguousarray(array)"
        )
    if any(extent < 0 for extent in shape):
        raise ValueError(f"array shape {shape}")
    return Header(shape=shape, dtype=dtype), np.lib.format.MAGIC_LEN + len(length_bytes) + length


def _read_exactly(stream: IO[bytes], size: int) -> bytes:
    values = stream.read(size)
    if len(values) != size:
        raise EOFError(f"{size} bytes expected, {len(values)} found")
    return values


def _expect_end(stream: IO[bytes]) -> None:
    # Reading past the last byte is what makes zipfile compare the checksum.
    if stream.read(1):
        raise EOFError("more bytes than the header says")
