from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mixport.records.errors import BadInputError
from mixport.storage.npz import open_npz, read_npz, write_npz

ARRAYS = {
    "input": np.linspace(0, 1, 12, dtype=np.float32).reshape(1, 3, 2, 2),
    "/layer1/conv/QuantizeLinear_output_0": np.arange(6, dtype=np.uint8).reshape(2, 3),
    "layer1.0.conv1": np.array([-128, 127], np.int8),
    "../up": np.zeros((0, 4), np.int32),
    "name.npy": np.float32(3.0),
    "größe:0": np.array([True, False]),
}


def member(path: Path, name: str, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, data)
    return path


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_numpy_reads_every_name_back(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", ARRAYS)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as loaded:
        assert loaded.files == list(ARRAYS)
        for name, array in ARRAYS.items():
            assert loaded[name].dtype == np.asarray(array).dtype
            np.testing.assert_array_equal(loaded[name], array)


def test_and_so_does_the_checked_reader(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", ARRAYS)
    loaded = read_npz(tmp_path / "a.npz")
    assert list(loaded) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert loaded[name].dtype == np.asarray(array).dtype
        np.testing.assert_array_equal(loaded[name], array)
    loaded["input"][:] = 0.0


def test_bytes_do_not_depend_on_time_or_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_npz(tmp_path / "a.npz", ARRAYS)
    monkeypatch.setattr("time.time", lambda: 2e9)
    write_npz(
        tmp_path / "b.npz",
        {name: np.asfortranarray(array) if np.ndim(array) else array for name, array in ARRAYS.items()},
    )
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("names", [[""], ["a\0b"], ["a\\b"], ["a", "a.npy"]])
def test_names_that_the_container_would_change_are_refused(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(ValueError, match="cannot name an array"):
        write_npz(tmp_path / "a.npz", {name: np.zeros(1) for name in names})


def test_object_arrays_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Object arrays"):
        write_npz(tmp_path / "a.npz", {"a": np.array([None])})


def test_rows_come_one_by_one(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.int16).reshape(4, 3, 2)
    np.savez_compressed(tmp_path / "a.npz", a=array)
    with open_npz(tmp_path / "a.npz") as archive:
        assert archive.header("a").shape == (4, 3, 2)
        np.testing.assert_array_equal(np.stack(list(archive.rows("a"))), array)


def test_an_error_of_the_caller_stays_what_it_is(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz", ARRAYS)
    with pytest.raises(ValueError, match="mine"), open_npz(tmp_path / "a.npz") as archive:
        for _ in archive.rows("input"):
            raise ValueError("mine")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a whole .npz file"),
        (b"\x93NUMPY\x03\x00", "not a whole .npz file"),
        (npy(np.zeros(4, np.uint8))[:-1], "its header says 4"),
        (npy(np.zeros(4, np.uint8)) + b"x", "its header says 4"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "array header of 4294967295 bytes"),
        (b"\x93NUMPY\x01\x00\x10\x00__import__('os')", "not a whole .npz file"),
        (npy(np.array(["text"])), "dtype <U4, allowed bool, integers and floats"),
        (npy(np.zeros(2, [("a", "i4")])), "allowed bool, integers and floats"),
        (npy(np.asfortranarray(np.zeros((2, 3)))), "Fortran order"),
    ],
)
def test_damaged_and_foreign_members_are_explained(tmp_path: Path, data: bytes, message: str) -> None:
    path = member(tmp_path / "a.npz", "a.npy", data)
    with pytest.raises(BadInputError, match=message) as caught:
        read_npz(path)
    assert str(path) in str(caught.value)
    assert caught.value.hint


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.array([{"x": 1}], dtype=object))
    with pytest.raises(BadInputError, match="dtype object"):
        read_npz(tmp_path / "a.npz")


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, a=np.arange(1000, dtype=np.uint8))
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadInputError, match="Bad CRC-32"):
        read_npz(path)
    with pytest.raises(BadInputError, match="Bad CRC-32"), open_npz(path) as archive:
        list(archive.rows("a"))


def test_a_truncated_file_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_npz(path, ARRAYS)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(BadInputError, match=r"not a whole \.npz file"):
        read_npz(path)


def test_sizes_are_bounded_before_anything_is_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(1_000_000, np.uint8))
    with pytest.raises(BadInputError, match="1000000 bytes of arrays, allowed 999999"):
        read_npz(tmp_path / "a.npz", max_bytes=999_999)


def test_missing_files_and_names(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no such file"):
        read_npz(tmp_path / "a.npz")
    write_npz(tmp_path / "a.npz", {"x": np.zeros(1)})
    with pytest.raises(BadInputError, match="no array 'y', got x"), open_npz(tmp_path / "a.npz") as archive:
        archive.read("y")
