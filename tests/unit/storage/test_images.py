from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mixport.records.calibration_set import Preprocessing
from mixport.records.errors import BadInputError, BadOptionError
from mixport.storage.images import choose_images, fit, normalise, read_labelled, write_images


def read_images(path: Path, *, preprocessing: Preprocessing, limit: int | None, seed: int) -> np.ndarray:
    """What `write_images` writes."""
    with TemporaryDirectory() as folder:
        written = Path(folder) / "images.npy"
        write_images(choose_images(path, limit=limit, seed=seed), written, preprocessing=preprocessing)
        return np.load(written)


SMALL = Preprocessing(size=(4, 4), mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
REPOSITORY = Path(__file__).resolve().parents[3]


def pixels(count: int, height: int = 4, width: int = 4, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, channels), np.uint8)


def save(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def image_folder(root: Path, images: np.ndarray) -> Path:
    root.mkdir(parents=True)
    for index, image in enumerate(images):
        Image.fromarray(image).save(root / f"{index:03}.png")
    return root


def test_images_of_the_right_size_are_untouched(tmp_path: Path) -> None:
    images = pixels(5)
    from_file = read_images(save(tmp_path / "a.npz", images=images), preprocessing=SMALL, limit=None, seed=0)
    from_folder = read_images(image_folder(tmp_path / "dir", images), preprocessing=SMALL, limit=None, seed=0)
    np.testing.assert_array_equal(from_file, images)
    np.testing.assert_array_equal(from_folder, images)


def test_a_limit_is_a_seeded_choice_in_order(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", images=pixels(100))
    first = choose_images(path, limit=10, seed=0).chosen
    assert first == choose_images(path, limit=10, seed=0).chosen
    assert first == tuple(sorted(set(first)))
    assert len(first) == 10
    assert first != choose_images(path, limit=10, seed=1).chosen
    assert choose_images(path, limit=100, seed=0).chosen == tuple(range(100))


def test_the_choice_of_a_seed_never_changes(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", images=pixels(20))
    assert choose_images(path, limit=5, seed=7).chosen == (1, 4, 6, 8, 16)


def test_folder_and_file_give_the_same_choice(tmp_path: Path) -> None:
    images = pixels(30)
    from_file = read_images(save(tmp_path / "a.npz", images=images), preprocessing=SMALL, limit=7, seed=3)
    from_folder = read_images(image_folder(tmp_path / "dir", images), preprocessing=SMALL, limit=7, seed=3)
    np.testing.assert_array_equal(from_file, from_folder)


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_transparent_arrays_become_rgb(tmp_path: Path, channels: int) -> None:
    images = pixels(2, channels=channels)
    got = read_images(save(tmp_path / "a.npz", images=images), preprocessing=SMALL, limit=None, seed=0)
    np.testing.assert_array_equal(got, np.repeat(images, 3, axis=3) if channels == 1 else images[..., :3])


def test_written_images_equal_those_read(tmp_path: Path) -> None:
    source = choose_images(save(tmp_path / "a.npz", images=pixels(9, 8, 6)), limit=5, seed=0)
    steps: list[int] = []
    write_images(source, tmp_path / "out.npy", preprocessing=SMALL, on_image=steps.append)
    written = np.load(tmp_path / "out.npy", mmap_mode="r", allow_pickle=False)
    np.testing.assert_array_equal(
        written, read_images(tmp_path / "a.npz", preprocessing=SMALL, limit=5, seed=0)
    )
    assert steps == [1] * 5


@pytest.mark.skipif(sys.platform == "win32", reason="the resource module is POSIX")
def test_a_large_set_does_not_pass_through_memory(tmp_path: Path) -> None:
    """1,024 images of 224x224 are 154 MB; writing them must add far less to the process."""
    script = """
import resource, sys
from pathlib import Path
import numpy as np
from mixport.records.calibration_set import Preprocessing
from mixport.storage.images import choose_images, write_images
folder = Path(sys.argv[1])
out = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=(1024, 224, 224, 3))
del out
import zipfile
with zipfile.ZipFile(folder / "a.npz", "w") as archive:
    archive.write(folder / "images.npy", "images.npy")
preprocessing = Preprocessing(size=(224, 224), mean=(0, 0, 0), std=(1, 1, 1))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
chosen = choose_images(folder / "a.npz", limit=None, seed=0)
write_images(chosen, folder / "out.npy", preprocessing=preprocessing)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    assert (tmp_path / "out.npy").stat().st_size > 154_000_000
    assert int(done.stdout) < 50_000, "kB"


@pytest.mark.parametrize(
    ("size", "input_size", "crop", "resized"),
    [
        ((500, 375), (224, 224), 0.875, (341, 256)),
        ((375, 500), (224, 224), 0.875, (256, 341)),
        ((64, 64), (32, 32), 1.0, (32, 32)),
        ((100, 100), (32, 64), 1.0, (64, 64)),
        ((10, 30), (32, 32), 1.0, (32, 96)),
    ],
)
def test_resize_then_centre_crop(
    size: tuple[int, int], input_size: tuple[int, int], crop: float, resized: tuple[int, int]
) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), np.uint8))
    preprocessing = Preprocessing(
        size=input_size, mean=(0, 0, 0), std=(1, 1, 1), crop_fraction=crop, interpolation="bilinear"
    )
    whole = np.asarray(image.resize(resized, Image.Resampling.BILINEAR))
    top, left = round((resized[1] - input_size[0]) / 2), round((resized[0] - input_size[1]) / 2)
    wanted = whole[top : top + input_size[0], left : left + input_size[1]]
    assert wanted.shape == (*input_size, 3)
    np.testing.assert_array_equal(fit(image, preprocessing=preprocessing), wanted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interpolation": "lanczos"}, "allowed nearest, bilinear, bicubic"),
        ({"crop_fraction": 0.0}, "above 0"),
        ({"crop_fraction": 1.5}, "at most 1"),
    ],
)
def test_unknown_preprocessing_is_refused(changes: dict[str, Any], message: str) -> None:
    preprocessing = Preprocessing(**{"size": (4, 4), "mean": (0, 0, 0), "std": (1, 1, 1), **changes})
    with pytest.raises(BadOptionError, match=message):
        fit(Image.new("RGB", (8, 8)), preprocessing=preprocessing)


def test_a_thread_of_pixels_is_not_blown_up() -> None:
    with pytest.raises(BadInputError, match="becomes 22400000x224, allowed 89478485 pixels"):
        fit(
            Image.new("RGB", (100_000, 1)),
            preprocessing=Preprocessing(size=(224, 224), mean=(0, 0, 0), std=(1, 1, 1)),
        )


def test_normalise_rounds_each_step_to_float32() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    preprocessing = Preprocessing(size=(16, 16), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    got = normalise(images, preprocessing=preprocessing)
    assert got.dtype == np.float32
    assert got.shape == (1, 3, 16, 16)
    assert got.flags.c_contiguous
    for channel in range(3):
        unit = np.arange(256).astype(np.float32) / np.float32(255)
        wanted = (unit - np.float32(preprocessing.mean[channel])) / np.float32(preprocessing.std[channel])
        np.testing.assert_array_equal(got[0, channel].ravel(), wanted)


def test_labelled_file(tmp_path: Path) -> None:
    images, labels = pixels(6), np.array([0, 0, 1, 1, 2, 2])
    path = save(tmp_path / "a.npz", images=images, labels=labels)
    got = read_labelled(path, preprocessing=SMALL, class_names=["a", "b", "c"])
    np.testing.assert_array_equal(got.images, images)
    np.testing.assert_array_equal(got.labels, labels)
    assert got.source == str(path)
    some = read_labelled(path, preprocessing=SMALL, class_names=None, limit=3)
    np.testing.assert_array_equal(some.images, images[[0, 2, 4]])
    assert some.labels.tolist() == [0, 1, 2], "every class keeps its share"


def test_labelled_folder(tmp_path: Path) -> None:
    images = pixels(4)
    image_folder(tmp_path / "set" / "dog", images[:2])
    image_folder(tmp_path / "set" / "cat", images[2:])
    got = read_labelled(tmp_path / "set", preprocessing=SMALL, class_names=["dog", "cat"])
    assert got.labels.tolist() == [1, 1, 0, 0]
    np.testing.assert_array_equal(got.images, images[[2, 3, 0, 1]])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": np.zeros(2, np.int64)}, "no array 'images', got labels"),
        ({"images": pixels(2).astype(np.float32), "labels": np.zeros(2, np.int64)}, "images is float32"),
        ({"images": np.full((2, 4, 4, 3), np.nan), "labels": np.zeros(2, np.int64)}, "images is float64"),
        (
            {"images": pixels(2)[0], "labels": np.zeros(2, np.int64)},
            r"uint8 \[4, 4, 3\], allowed uint8 \[N, H, W, 3\]",
        ),
        (
            {"images": np.zeros((2, 3, 8, 8), np.uint8), "labels": np.zeros(2, np.int64)},
            r"uint8 \[2, 3, 8, 8\]",
        ),
        ({"images": pixels(2)[:0], "labels": np.zeros(0, np.int64)}, "N, H and W above 0"),
        ({"images": pixels(2, channels=2), "labels": np.zeros(2, np.int64)}, r"\[2, 4, 4, 2\]"),
        ({"images": pixels(2)}, "no array 'labels', got images"),
        (
            {"images": pixels(2), "labels": np.zeros(2, np.int32)},
            r"labels is int32 \[2\], allowed int64 \[2\]",
        ),
        ({"images": pixels(2), "labels": np.array([0.0, np.nan])}, "labels is float64"),
        ({"images": pixels(2), "labels": np.zeros(3, np.int64)}, r"int64 \[3\], allowed int64 \[2\]"),
        ({"images": pixels(2), "labels": np.array([0, 3])}, "labels go from 0 to 3, allowed 0 to 2"),
        ({"images": pixels(2), "labels": np.array([-1, 0])}, "labels go from -1 to 0"),
        ({"images": np.array([None, None]), "labels": np.zeros(2, np.int64)}, "dtype object"),
    ],
)
def test_labelled_files_that_do_not_fit_are_explained(
    tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    path = save(tmp_path / "a.npz", **arrays)
    with pytest.raises(BadInputError, match=message) as caught:
        read_labelled(path, preprocessing=SMALL, class_names=["a", "b", "c"])
    assert str(path) in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["missing", "set.zip", "empty.npz"])
def test_paths_that_hold_no_images_are_explained(tmp_path: Path, name: str) -> None:
    if name != "missing":
        (tmp_path / name).touch()
    for read in (
        lambda: read_images(tmp_path / name, preprocessing=SMALL, limit=None, seed=0),
        lambda: read_labelled(tmp_path / name, preprocessing=SMALL, class_names=None),
    ):
        with pytest.raises(BadInputError, match=name) as caught:
            read()
        assert caught.value.hint


def test_a_header_of_many_gigabytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.npz", images=pixels(10))
    monkeypatch.setattr("mixport.storage.images.MAX_ARRAY_BYTES", 400)
    with pytest.raises(BadInputError, match="480 bytes, allowed 400"):
        read_images(path, preprocessing=SMALL, limit=None, seed=0)


def test_pixels_that_would_not_fit_in_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "a.npz", images=pixels(10), labels=np.zeros(10, np.int64))
    monkeypatch.setattr("mixport.storage.images.MAX_ARRAY_BYTES", 10_000)
    preprocessing = Preprocessing(size=(32, 32), mean=(0, 0, 0), std=(1, 1, 1))
    with pytest.raises(BadInputError, match="10 images need 30720 bytes"):
        read_labelled(path, preprocessing=preprocessing, class_names=None)


@pytest.mark.data
def test_cifar10(data_dir: Path) -> None:
    preprocessing = Preprocessing(size=(32, 32), mean=(0, 0, 0), std=(1, 1, 1))
    got = read_labelled(
        data_dir / "cifar10_test.npz",
        preprocessing=preprocessing,
        class_names=[str(index) for index in range(10)],
        limit=500,
    )
    assert got.images.shape == (500, 32, 32, 3)
    assert set(got.labels.tolist()) == set(range(10))
