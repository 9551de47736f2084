"""Fingerprints and the .npz container hold for any value."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mixport.records.errors import BadInputError
from mixport.records.fingerprint import canonical_json, sha256_arrays
from mixport.storage.npz import read_npz, write_npz
from mixport.storage.sealed_json import seal, unseal

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
RECORDS = st.dictionaries(
    st.text(max_size=8).filter(lambda name: name != "record_sha256"), PLAIN, min_size=1, max_size=4
)
NAMES = st.text(
    st.characters(exclude_characters="\0\\", exclude_categories=["Cs"]), min_size=1, max_size=20
).filter(lambda name: not name.endswith(".npy"))
ARRAYS: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    NAMES,
    hnp.arrays(
        st.sampled_from([np.uint8, np.int8, np.int32, np.int64, np.float32, np.bool_]),
        hnp.array_shapes(min_dims=0, min_side=0, max_side=4),
    ),
    max_size=4,
)


@given(PLAIN)
def test_canonical_json_is_json_and_keeps_the_value(value: object) -> None:
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text


@given(st.dictionaries(st.text(max_size=8), st.integers(), max_size=6))
def test_the_order_of_keys_does_not_count(value: dict[str, int]) -> None:
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


@given(RECORDS)
def test_a_sealed_record_comes_back(record: dict[str, object]) -> None:
    data = seal(record)
    assert unseal(data) == record
    assert {**json.loads(data)}.keys() == {"record_sha256", *record}


@given(RECORDS, st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_a_sealed_record_with_any_changed_byte_is_refused(
    record: dict[str, object], place: float, mask: int
) -> None:
    data = bytearray(seal(record))
    data[int(place * len(data))] ^= mask
    with pytest.raises(ValueError, match="record_sha256"):
        unseal(bytes(data))


@given(st.binary(max_size=200) | st.binary(max_size=40).map(lambda tail: seal({"a": 1}) + tail + b"x"))
def test_bytes_that_are_no_sealed_record_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="record_sha256"):
        unseal(data)


@settings(max_examples=50, deadline=None)
@given(ARRAYS)
def test_npz_round_trip(arrays: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder, "a.npz"), Path(folder, "b.npz")
        write_npz(first, arrays)
        write_npz(second, arrays)
        assert first.read_bytes() == second.read_bytes()
        loaded = read_npz(first)
        assert list(loaded) == list(arrays)
        assert sha256_arrays(loaded) == sha256_arrays(arrays)
        with np.load(first, allow_pickle=False) as theirs:
            assert sha256_arrays({name: theirs[name] for name in arrays}) == sha256_arrays(arrays)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_any_changed_byte_is_harmless_or_explained(position: int, value: int) -> None:
    arrays = {"input": np.arange(60, dtype=np.float32).reshape(5, 12), "b/c.d": np.arange(7, dtype=np.uint8)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.npz")
        write_npz(path, arrays)
        data = bytearray(path.read_bytes())
        data[position % len(data)] = value
        path.write_bytes(data)
        try:
            loaded = read_npz(path)
        except BadInputError:
            return
        assert {sha256_arrays({"a": array}) for array in loaded.values()} <= {
            sha256_arrays({"a": array}) for array in arrays.values()
        }
