"""similarity.npz of a folder of drawn images: the cosines that far pairs were chosen by.

Only where pairs are far apart in text embedding. The comment at the end of the archive is the SHA-256 of all
bytes before it: zip has a checksum of the values only, and the pairs of a folder must not change unseen.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mixport.records.fingerprint import sha256_bytes
from mixport.storage.npz import ARCHIVE_DAMAGE

SIMILARITY_FILE = "similarity.npz"

_MAX_BYTES = 1 << 30
_DIGEST_BYTES = 64


def pack_similarity(cosine: NDArray[np.float32]) -> bytes:
    """The bytes of the file; `numpy.load` reads it. `cosine` is [C, C]."""
    buffer = io.BytesIO()
    np.savez(buffer, cosine=cosine)
    with zipfile.ZipFile(buffer, "a") as archive:
        # Its length stands in front of it, among the bytes that are hashed.
        archive.comment = b"0" * _DIGEST_BYTES
    hashed = buffer.getvalue()[:-_DIGEST_BYTES]
    return hashed + sha256_bytes(hashed).encode("ascii")


def read_similarity(folder: Path) -> tuple[NDArray[np.float32] | None, str | None]:
    """The cosines, [C, C], or what is wrong with their file; neither where there is none."""
    path = folder / SIMILARITY_FILE
    try:
        if path.stat().st_size > _MAX_BYTES:
            return None, f"larger than {_MAX_BYTES} bytes"
        data = path.read_bytes()
        if data[-_DIGEST_BYTES:] != sha256_bytes(data[:-_DIGEST_BYTES]).encode("ascii"):
            return None, "content differs from the SHA-256 at its end"
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            found: NDArray[np.float32] = archive["cosine"]
    except FileNotFoundError:
        return None, None
    except (*ARCHIVE_DAMAGE, KeyError) as error:
        return None, f"cannot be read: {(str(error).splitlines() or [''])[0]}"
    square = found.dtype == np.float32 and found.ndim == 2 and found.shape[0] == found.shape[1]
    return (found, None) if square else (None, f"holds {found.dtype} {list(found.shape)}")
