from __future__ import annotations

import errno
import io
import os
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixport.calibration.drawn_images.shard_format import pack
from mixport.calibration.drawn_images.shards import (
    MANIFEST_FILE,
    ShardFolder,
    read_manifest,
    shard_files,
    verify_folder,
)
from mixport.records.errors import StoreError

BATCH = 3


def pixels(seed: int, *, count: int = BATCH) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 6, 5, 3), np.uint8)


def shards(cache: Path) -> ShardFolder:
    return ShardFolder(cache / "drawn" / "key", batch=BATCH, cache=cache)


def filled(cache: Path, *, batches: int = 2, seal: bool = True) -> Path:
    folder = shards(cache)
    with folder.lock():
        for batch in range(batches):
            folder.write(batch * BATCH, pixels(batch), note={"pieces": [BATCH]})
        if seal:
            folder.seal(metadata={"seconds": 1.5})
    return folder.path


def flip(path: Path, *, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_images_come_back_with_their_notes(tmp_path: Path) -> None:
    path = filled(tmp_path)
    assert sorted(one.name for one in path.iterdir()) == [
        "000000-000002.zip",
        "000003-000005.zip",
        MANIFEST_FILE,
    ]
    folder = shards(tmp_path)
    with folder.lock():
        assert [folder.has(first) for first in (0, 3, 6)] == [True, True, False]
        np.testing.assert_array_equal(folder.read(3).images, pixels(1))
        assert folder.read(3).record.note == {"pieces": [BATCH]}
        assert folder.sealed
    assert folder.damaged == []
    assert verify_folder(path) == []


def test_a_shard_is_a_zip_of_numbered_png(tmp_path: Path) -> None:
    with zipfile.ZipFile(filled(tmp_path) / "000003-000005.zip") as archive:
        assert archive.namelist() == ["000003.png", "000004.png", "000005.png", "notes.json"]
        with Image.open(io.BytesIO(archive.read("000004.png"))) as image:
            np.testing.assert_array_equal(np.asarray(image), pixels(1)[1])


def test_the_manifest_does_not_depend_on_the_order_of_work(tmp_path: Path) -> None:
    first, second = filled(tmp_path / "a"), shards(tmp_path / "b")
    with second.lock():
        second.write(3, pixels(1), note={"pieces": [BATCH]})
        second.seal(metadata={})
    with second.lock():
        second.write(0, pixels(0), note={"pieces": [BATCH]})
        second.seal(metadata={"seconds": 1.5})
    assert (second.path / MANIFEST_FILE).read_bytes() == (first / MANIFEST_FILE).read_bytes()
    manifest, problem = read_manifest(first)
    assert problem is None
    assert manifest is not None
    assert (manifest.count, len(manifest.shards)) == (6, 2)


def test_the_content_hash_sees_one_grey_level(tmp_path: Path) -> None:
    hashes: set[str] = set()
    for change in (0, 1):
        folder = shards(tmp_path / str(change))
        images = pixels(0)
        images[1, 2, 3, 0] ^= change
        with folder.lock():
            folder.write(0, images, note={})
            hashes.add(folder.seal(metadata={}).content_sha256)
    assert len(hashes) == 2


@pytest.mark.parametrize("sealed", [True, False])
def test_a_damaged_shard_moves_away_and_is_noted(tmp_path: Path, sealed: bool) -> None:
    path = filled(tmp_path, seal=sealed)
    shard = path / "000000-000002.zip"
    # Inside the pixels of the second image: a shard that no manifest knows proves itself by these.
    flip(shard, offset=shard.stat().st_size // 2)
    assert [line.partition(":")[0] for line in verify_folder(path)] == [shard.name]
    folder = shards(tmp_path)
    with folder.lock():
        assert not folder.has(0)
        assert folder.has(3)
    (damaged,) = folder.damaged
    assert (damaged.kind, damaged.key) == ("drawn", "key")
    assert damaged.moved_to is not None
    assert damaged.moved_to.parent == tmp_path / ".damaged"
    assert damaged.moved_to.is_file()
    assert not shard.exists()


def test_verify_finds_every_flipped_byte_of_a_sealed_shard(tmp_path: Path) -> None:
    shard = filled(tmp_path) / "000003-000005.zip"
    for offset in range(0, shard.stat().st_size, 29):
        flip(shard, offset=offset)
        assert verify_folder(shard.parent) == [f"{shard.name}: content differs from its recorded SHA-256"], (
            offset
        )
        flip(shard, offset=offset)
    assert verify_folder(shard.parent) == []


def test_verify_finds_a_missing_shard_and_a_damaged_manifest(tmp_path: Path) -> None:
    path = filled(tmp_path)
    (path / "000000-000002.zip").unlink()
    assert verify_folder(path) == ["000000-000002.zip: missing"]
    text = (path / MANIFEST_FILE).read_text()
    (path / MANIFEST_FILE).write_text(text.replace('"count": 6', '"count": "six"'))
    assert verify_folder(path)[0].startswith(f"{MANIFEST_FILE}: cannot be read")


def test_a_damaged_manifest_moves_away_and_is_written_again(tmp_path: Path) -> None:
    path = filled(tmp_path)
    whole, _ = read_manifest(path)
    (path / MANIFEST_FILE).write_text("{")
    folder = shards(tmp_path)
    with folder.lock():
        assert [folder.has(first) for first in (0, 3)] == [True, True]
        assert not folder.sealed
        assert folder.seal(metadata={"seconds": 1.5}) == whole
    assert [one.problems[0].partition(":")[0] for one in folder.damaged] == [MANIFEST_FILE]


def test_leftovers_of_a_killed_writer_go(tmp_path: Path) -> None:
    path = filled(tmp_path)
    (path / ".new-0123abcd").write_bytes(b"half a shard")
    with shards(tmp_path).lock():
        assert not (path / ".new-0123abcd").exists()


def test_a_shard_of_another_name_is_refused(tmp_path: Path) -> None:
    path = filled(tmp_path, seal=False)
    (path / "000003-000005.zip").replace(path / "000006-000008.zip")
    assert verify_folder(path) == [
        "000006-000008.zip: cannot be read: the images inside are not those of its name"
    ]


def test_a_shard_that_unpacks_to_more_than_it_is_gets_refused(tmp_path: Path) -> None:
    data, record = pack(0, pixels(0), note={})
    path = tmp_path / "drawn" / "key"
    path.mkdir(parents=True)
    with (
        zipfile.ZipFile(io.BytesIO(data)) as whole,
        zipfile.ZipFile(path / record.file, "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in whole.namelist():
            bomb.writestr(name, whole.read(name))
    assert verify_folder(path) == [
        f"{record.file}: cannot be read: members are compressed, or the notes too large"
    ]


def test_the_second_writer_waits(tmp_path: Path) -> None:
    waited = threading.Event()
    order: list[str] = []

    def second() -> None:
        with shards(tmp_path).lock(on_wait=waited.set):
            order.append("second")

    with shards(tmp_path).lock():
        thread = threading.Thread(target=second)
        thread.start()
        assert waited.wait(timeout=20)
        time.sleep(0.05)
        order.append("first")
    thread.join(timeout=20)
    assert order == ["first", "second"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_cache_that_cannot_be_written_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    folder = shards(tmp_path)
    with folder.lock():
        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(StoreError, match=os.strerror(number)) as caught:
            folder.write(0, pixels(0), note={})
        monkeypatch.undo()
        assert "--cache DIR" in str(caught.value.hint)
        assert list(folder.path.iterdir()) == []


def test_a_cache_below_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(StoreError) as caught, shards(tmp_path / "cache").lock():
        pass
    assert "--cache DIR" in str(caught.value.hint)


def test_a_folder_where_nothing_was_written_does_not_stay(tmp_path: Path) -> None:
    folder = shards(tmp_path)
    with folder.lock():
        pass
    assert not folder.path.exists()
    assert shard_files(folder.path) == []
