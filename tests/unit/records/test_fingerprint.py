from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from mixport.records.fingerprint import canonical_json, sha256_arrays, sha256_bytes, sha256_file, sha256_json


@dataclass(frozen=True)
class Point:
    x: float
    label: str | None


def test_canonical_json_is_sorted_and_tight() -> None:
    assert canonical_json({"b": [1, 2.5, True, None], "a": "ü"}) == b'{"a":"\\u00fc","b":[1,2.5,true,null]}'


def test_dataclasses_tuples_and_paths_have_one_spelling() -> None:
    assert canonical_json((Point(0.1, None), PurePosixPath("a/b"))) == b'[{"label":null,"x":0.1},"a/b"]'


def test_integers_and_floats_differ() -> None:
    assert canonical_json(1) != canonical_json(1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_numbers_that_are_not_finite_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="finite"):
        canonical_json(value)


@pytest.mark.parametrize("value", [{1: "a"}, {"a": b"bytes"}, {1, 2}, np.float32(1), object(), Point])
def test_other_types_are_refused(value: object) -> None:
    with pytest.raises(TypeError):
        canonical_json(value)


def test_a_refusal_says_where() -> None:
    with pytest.raises(TypeError, match=r"value\['a'\]\[1\] is a bytes"):
        canonical_json({"a": [0, b""]})


def test_hashes_are_sha256(tmp_path: Path) -> None:
    data = b"x" * 3_000_000
    (tmp_path / "file").write_bytes(data)
    wanted = hashlib.sha256(data).hexdigest()
    assert sha256_bytes(data) == sha256_file(tmp_path / "file") == wanted
    assert sha256_json({}) == hashlib.sha256(b"{}").hexdigest()


def test_layout_and_byte_order_do_not_count() -> None:
    array = np.arange(24, dtype="<i4").reshape(4, 6)
    wanted = sha256_arrays({"a": array})
    assert sha256_arrays({"a": array.astype(">i4")}) == wanted
    assert sha256_arrays({"a": np.asfortranarray(array)}) == wanted
    assert sha256_arrays({"a": np.repeat(array, 2, axis=0)[::2]}) == wanted


def test_names_types_shapes_and_values_count() -> None:
    array = np.zeros((2, 3), np.uint8)
    changed = array.copy()
    changed[1, 2] = 1
    sets = [
        {"a": array},
        {"b": array},
        {"a": array.astype(np.int8)},
        {"a": array.reshape(3, 2)},
        {"a": changed},
        {"a": array[:0]},
        {},
    ]
    assert len({sha256_arrays(one) for one in sets}) == len(sets)


def test_memory_maps_longer_than_a_piece(tmp_path: Path) -> None:
    array = np.arange(700_001, dtype=np.float64)
    np.save(tmp_path / "a.npy", array)
    assert sha256_arrays({"a": np.load(tmp_path / "a.npy", mmap_mode="r")}) == sha256_arrays({"a": array})


def test_object_arrays_are_refused() -> None:
    with pytest.raises(TypeError, match="object"):
        sha256_arrays({"a": np.array([None])})
