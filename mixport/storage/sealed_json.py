"""JSON records that prove themselves: the first field is the SHA-256 of everything behind it, byte by byte.

The bytes of the file are hashed, not the values in them: a changed space is found too, and a large record is
checked at the speed of SHA-256, before it is parsed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mixport.records.fingerprint import sha256_bytes

FIELD = "record_sha256"

_HEAD = f'{{\n "{FIELD}": "'.encode("ascii")
_END = len(_HEAD) + 64


def seal(document: Mapping[str, Any]) -> bytes:
    """A record as the bytes of its file.

    Args:
        document: at least one field, plain JSON values; `record_sha256` is added.

    Raises:
        ValueError: a float that is not finite.
        TypeError: a value that JSON does not have.
    """
    text = json.dumps(dict(document), indent=1, allow_nan=False)
    rest = f'",{text.removeprefix("{")}\n'.encode("ascii")
    return _HEAD + sha256_bytes(rest).encode("ascii") + rest


def unseal(data: bytes) -> dict[str, Any]:
    """What `seal` was given.

    Raises:
        ValueError: bytes that `seal` did not write, or that changed since; the message says which.
    """
    if not data.startswith(_HEAD):
        raise ValueError(f"does not start with a {FIELD}: damaged, or written by another version")
    if data[len(_HEAD) : _END] != sha256_bytes(data[_END:]).encode("ascii"):
        raise ValueError(f"content differs from its {FIELD}")
    try:
        document: dict[str, Any] = json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    del document[FIELD]
    return document
