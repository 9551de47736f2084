from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mixport.calibration.drawn_images.shard_format import BadShardError, pack, read_shard, shard_name

IMAGES = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)).flatmap(
    lambda shape: arrays(np.uint8, (*shape, 3), elements=st.integers(0, 255))
)
NOTES = st.dictionaries(
    st.text(max_size=5), st.lists(st.integers() | st.text(max_size=5) | st.none(), max_size=3), max_size=3
)


def written(data: bytes, folder: str, *, first: int, count: int) -> Path:
    path = Path(folder) / shard_name(first, count)
    path.write_bytes(data)
    return path


@given(images=IMAGES, first=st.integers(0, 2_000_000), note=NOTES)
@settings(max_examples=50, deadline=None)
def test_what_is_packed_comes_back(images: np.ndarray, first: int, note: dict[str, object]) -> None:
    data, record = pack(first, images, note=note)
    assert pack(first, images, note=note) == (data, record)
    with tempfile.TemporaryDirectory() as folder:
        shard = read_shard(
            written(data, folder, first=first, count=len(images)), first=first, count=len(images)
        )
    np.testing.assert_array_equal(shard.images, images)
    assert shard.record == record
    assert shard.record.note == note


@given(images=IMAGES, place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=150, deadline=None)
def test_a_flipped_bit_never_changes_a_pixel_unseen(images: np.ndarray, place: float, bit: int) -> None:
    data, record = pack(0, images, note={})
    changed = bytearray(data)
    changed[int(place * len(data))] ^= 1 << bit
    with tempfile.TemporaryDirectory() as folder:
        path = written(bytes(changed), folder, first=0, count=len(images))
        with contextlib.suppress(BadShardError):
            np.testing.assert_array_equal(read_shard(path, first=0, count=len(images)).images, images)
        with pytest.raises(BadShardError):
            read_shard(path, first=0, count=len(images), sha256=record.sha256)
