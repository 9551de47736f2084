"""Canonical JSON and SHA-256: the only place that hashes.

A fingerprint depends on values alone: not on the order of a dictionary, the memory layout or byte order of an
array, the machine, or the time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

_CHUNK_BYTES = 1 << 20
_HASHED_KINDS = "biuf"


def canonical_json(value: object) -> bytes:
    """One ASCII spelling for equal values: sorted keys, no spaces, floats by repr.

    Takes None, bool, int, finite float, str, list, tuple, mappings with str keys, dataclass instances (as
    their fields) and paths (with forward slashes). 1 and 1.0 are different values.

    Raises:
        TypeError: a type outside this list; the message says where.
        ValueError: a float that is not finite.
    """
    plain = _plain(value, "value")
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def sha256_bytes(data: bytes) -> str:
    """SHA-256 in lower-case hex, 64 characters."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, read in pieces. Raises OSError."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: object) -> str:
    """SHA-256 of `canonical_json(value)`."""
    return sha256_bytes(canonical_json(value))


def sha256_arrays(arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 over names, dtypes, shapes and values, in the order of the names.

    Memory-mapped arrays are read in place. Byte order and memory layout do not count.

    Raises:
        TypeError: an array that is not bool, integer or float.
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        if array.dtype.kind not in _HASHED_KINDS:
            raise TypeError(f"array {name!r} has dtype {array.dtype}, allowed bool, integers and floats")
        header = canonical_json([name, array.dtype.name, list(array.shape)])
        # The length in front keeps headers and data apart, so that no two sets of arrays give the same
        # stream.
        digest.update(len(header).to_bytes(8, "little") + header)
        for piece in _little_endian_pieces(array):
            digest.update(piece)
    return digest.hexdigest()


def _little_endian_pieces(array: NDArray[Any]) -> Iterator[bytes]:
    flat = np.ascontiguousarray(array).reshape(-1)
    little = flat.dtype.newbyteorder("<")
    step = max(1, _CHUNK_BYTES // flat.itemsize)
    for start in range(0, flat.size, step):
        yield flat[start : start + step].astype(little, copy=False).tobytes()


def _plain(value: object, where: str) -> object:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}, allowed finite numbers")
        return float(value)
    if isinstance(value, PurePath):
        return value.as_posix()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name), f"{where}.{field.name}")
            for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        items = cast("Mapping[object, object]", value)
        return {_key(key, where): _plain(item, f"{where}[{key!r}]") for key, item in items.items()}
    if isinstance(value, (list, tuple)):
        sequence = cast("list[object] | tuple[object, ...]", value)
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(sequence)]
    raise TypeError(f"{where} is a {type(value).__name__}, which has no canonical JSON")


def _key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise TypeError(f"{where} has the key {key!r}, allowed str")
    return key
