from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixport.calibration import noise
from mixport.calibration.calibrate import calibrate
from mixport.calibration.recipe import parse_calibration
from mixport.records.calibration_set import CalibrationSet, Preprocessing
from mixport.records.errors import BadInputError, StoreError
from mixport.records.fingerprint import sha256_arrays
from mixport.records.progress import SilentProgress
from mixport.storage.store import Store

SMALL = Preprocessing(size=(8, 8), mean=(0, 0, 0), std=(1, 1, 1))


class Steps:
    """A Progress that remembers."""

    def __init__(self) -> None:
        self.totals: list[int] = []
        self.done = 0

    @contextmanager
    def track(self, description: str, *, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
        self.totals.append(total)

        def advance(count: int) -> None:
            self.done += count

        yield advance


def run(
    text: str, store: Store, *, images: int = 6, seed: int = 0, preprocessing: Preprocessing = SMALL
) -> CalibrationSet:
    recipe = parse_calibration(text, images=images, seed=seed, preprocessing=preprocessing)
    return calibrate(recipe, store=store, progress=SilentProgress())


def pixels(made: CalibrationSet) -> np.ndarray:
    return np.load(made.images_path, mmap_mode="r", allow_pickle=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    root.mkdir()
    for index, image in enumerate(np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), np.uint8)):
        Image.fromarray(image).save(root / f"{index}.png")
    return root


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def test_noise_fills_the_record(store: Store) -> None:
    made = run("noise", store)
    assert (made.count, made.method, made.generator) == (6, "noise", None)
    assert pixels(made).shape == (6, 8, 8, 3)
    np.testing.assert_array_equal(pixels(made)[4], noise.noise_image(seed=0, index=4, size=(8, 8)))
    assert made.content_sha256 == sha256_arrays({"images": pixels(made)})
    assert made.images_path.parent.name == made.recipe_key


def test_the_same_recipe_comes_from_the_cache(store: Store, folder: Path) -> None:
    for text in ("noise", f"images:{folder}"):
        steps = Steps()
        recipe = parse_calibration(text, images=6, seed=0, preprocessing=SMALL)
        first = calibrate(recipe, store=store, progress=steps)
        assert (steps.totals, steps.done) == ([6], 6)
        assert calibrate(recipe, store=store, progress=steps) == first
        assert steps.totals == [6]


def test_a_longer_noise_set_serves_a_shorter_one_and_the_other_way(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    original = noise.noise_image

    def counted(*, seed: int, index: int, size: tuple[int, int]) -> np.ndarray:
        made.append(index)
        return original(seed=seed, index=index, size=size)

    monkeypatch.setattr(noise, "noise_image", counted)
    long = run("noise", store, images=6)
    short = run("noise", store, images=4)
    longest = run("noise", store, images=8)
    assert made == [0, 1, 2, 3, 4, 5, 6, 7]
    np.testing.assert_array_equal(pixels(short), pixels(long)[:4])
    np.testing.assert_array_equal(pixels(longest)[:6], pixels(long))
    run("noise", store, images=4, seed=1)
    assert made[8:] == [0, 1, 2, 3]


def test_what_does_not_change_the_pixels_does_not_change_the_key(store: Store) -> None:
    other = Preprocessing(size=(8, 8), mean=(0.5, 0.5, 0.5), std=(2, 2, 2))
    assert run("noise", store).recipe_key == run("noise", store, preprocessing=other).recipe_key


def test_the_key_follows_content_and_not_place(store: Store, folder: Path) -> None:
    first = run(f"images:{folder}", store)
    moved = folder.rename(folder.with_name("moved"))
    assert run(f"images:{moved}", store) == first
    assert run(f"images:{moved}", store, seed=1).recipe_key != first.recipe_key
    assert run(f"images:{moved}", store, images=7).recipe_key != first.recipe_key
    chosen = next(
        path for path in sorted(moved.iterdir()) if (np.asarray(Image.open(path)) == pixels(first)[0]).all()
    )
    Image.new("RGB", (8, 8)).save(chosen)
    changed = run(f"images:{moved}", store)
    assert changed.recipe_key != first.recipe_key
    assert changed.content_sha256 != first.content_sha256


def test_a_smaller_folder_gives_what_it_has(store: Store, folder: Path) -> None:
    assert run(f"images:{folder}", store, images=512).count == 10


def test_npz_and_folder(store: Store, folder: Path, tmp_path: Path) -> None:
    images = np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())])
    np.savez(tmp_path / "set.npz", images=images)
    assert (
        run(f"images:{tmp_path / 'set.npz'}", store).content_sha256
        == run(f"images:{folder}", store).content_sha256
    )


def test_a_damaged_set_is_made_again(store: Store, folder: Path) -> None:
    first = run(f"images:{folder}", store)
    data = bytearray(first.images_path.read_bytes())
    data[-1] ^= 1
    first.images_path.write_bytes(data)
    again = run(f"images:{folder}", store)
    assert again == first
    assert sha256_arrays({"images": pixels(again)}) == first.content_sha256
    assert len(store.damaged) == 1


def test_a_bad_image_leaves_no_set(store: Store, folder: Path) -> None:
    (folder / "3.png").write_bytes(b"no image")
    with pytest.raises(BadInputError, match=r"3\.png cannot be decoded"):
        run(f"images:{folder}", store, images=10)
    assert store.entries() == []


def test_a_full_disk_leaves_no_set(store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mixport.calibration.calibrate.write_images", full)
    with pytest.raises(StoreError, match="No space left"):
        run(f"images:{folder}", store)
    assert store.entries() == []
    assert list((store.root / ".tmp").iterdir()) == []


def test_a_missing_source(store: Store, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="does not exist"):
        run(f"images:{tmp_path / 'nowhere'}", store)
