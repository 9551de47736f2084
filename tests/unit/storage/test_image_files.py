from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixport.records.errors import BadInputError
from mixport.storage.image_files import decode, image_files, labelled_files, skipped_files

NAMES = ("tabby cat", "dog", "crane", "crane")


def png(path: Path, mode: str = "RGB", size: tuple[int, int] = (4, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(path)
    return path


def folders(root: Path, names: Sequence[str]) -> Path:
    for name in names:
        png(root / name / "1.png")
    return root


def test_listing_is_sorted_recursive_and_by_suffix(tmp_path: Path) -> None:
    for name in (
        "b/2.JPG",
        "a.png",
        "b/1.webp",
        "b.bmp",
        "B/1.jpeg",
        ".hidden/1.png",
        "._a.png",
        "notes.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in image_files(tmp_path)]
    assert found == ["B/1.jpeg", "a.png", "b.bmp", "b/1.webp", "b/2.JPG"]


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(BadInputError, match=r"no image below it, allowed \.bmp"):
        image_files(tmp_path)


def test_files_that_are_left_out_are_counted_by_suffix(tmp_path: Path) -> None:
    for name in ("a.png", "b/1.GIF", "b/2.gif", "notes.txt", "LICENSE", ".hidden/1.tif", ".DS_Store"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert skipped_files(tmp_path) == {".gif": 2, ".txt": 1, "no suffix": 1}


@pytest.mark.parametrize(
    ("orientation", "corner"),
    [(1, (0, 0)), (2, (0, 3)), (3, (1, 3)), (4, (1, 0)), (5, (0, 0)), (6, (0, 1)), (7, (3, 1)), (8, (3, 0))],
)
def test_images_stand_as_their_exif_orientation_says(
    tmp_path: Path, orientation: int, corner: tuple[int, int]
) -> None:
    stored = np.zeros((2, 4, 3), np.uint8)
    stored[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    upright = np.asarray(decode(tmp_path / "a.png"))
    # Where the stored upper left corner is seen: the definition of the tag, EXIF 2.32, table 6.
    assert upright.shape == ((2, 4, 3) if orientation < 5 else (4, 2, 3))
    assert np.argwhere(upright[:, :, 0] == 255).tolist() == [list(corner)]


def test_damaged_exif_data_say_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png", exif=b"Exif\x00\x00MM\x00")
    assert decode(tmp_path / "a.png").size == (4, 3)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "1"])
def test_every_8_bit_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    assert decode(png(tmp_path / "a.png", mode)).mode == "RGB"


def test_deeper_images_are_refused_rather_than_clipped(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="mode I;16, allowed 8 bits a channel"):
        decode(png(tmp_path / "a.png", "I;16"))


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(20)])
def test_damaged_files_are_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bad.png").write_bytes(data)
    with pytest.raises(BadInputError, match=r"bad\.png cannot be decoded") as caught:
        decode(tmp_path / "bad.png")
    assert caught.value.hint == "remove or replace bad.png"


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-200])
    with pytest.raises(BadInputError, match=r"a\.jpg cannot be decoded"):
        decode(tmp_path / "a.jpg")


def test_a_decompression_bomb_is_not_unpacked(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side in (10_000, 100_000):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        (tmp_path / "bomb.png").write_bytes(
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
        )
        with pytest.raises(BadInputError, match="too many pixels"):
            decode(tmp_path / "bomb.png")


def test_class_folders_by_name_ignore_case_and_underscores(tmp_path: Path) -> None:
    files = labelled_files(folders(tmp_path, ["Tabby_Cat", "DOG"]), class_names=NAMES)
    assert [(file.path.parent.name, file.label) for file in files] == [("DOG", 1), ("Tabby_Cat", 0)]


def test_class_folders_by_index(tmp_path: Path) -> None:
    files = labelled_files(
        folders(tmp_path, ["10", "9", "0"]), class_names=[f"class {index}" for index in range(11)]
    )
    assert sorted(file.label for file in files) == [0, 9, 10]
    assert sorted(file.label for file in labelled_files(tmp_path, class_names=None)) == [0, 9, 10]


def test_digits_that_are_class_names_are_names(tmp_path: Path) -> None:
    files = labelled_files(folders(tmp_path, ["0", "1"]), class_names=["1", "0"])
    assert [(file.path.parent.name, file.label) for file in files] == [("0", 1), ("1", 0)]


def test_as_many_unknown_folders_as_classes_are_the_classes_in_order(tmp_path: Path) -> None:
    files = labelled_files(folders(tmp_path, ["n02", "n01"]), class_names=["cat", "dog"])
    assert [(file.path.parent.name, file.label) for file in files] == [("n01", 0), ("n02", 1)]


@pytest.mark.parametrize(
    ("names", "class_names", "message"),
    [
        (
            ["n01", "n02", "n03"],
            ["cat", "dog"],
            r"3 folders \(n01, n02, n03\) do not fit the model's 2 classes \(cat, dog\)",
        ),
        (["n01", "n02"], None, "do not fit class names or indices"),
        (["cat", "hog"], ["cat", "dog"], "no class of the model: hog"),
        (["0", "2"], ["cat", "dog"], "folder 2 is no class index, allowed 0 to 1"),
        (["0", "00"], None, "folders 0, 00 are all class 0"),
        (["crane"], NAMES, "folder crane fits classes 2, 3"),
        ([], ["cat"], "no class folders"),
    ],
)
def test_folders_that_fit_no_class_are_explained(
    tmp_path: Path, names: list[str], class_names: list[str] | None, message: str
) -> None:
    with pytest.raises(BadInputError, match=message) as caught:
        labelled_files(folders(tmp_path, names), class_names=class_names)
    assert caught.value.hint


def test_an_image_outside_the_class_folders_is_not_dropped_silently(tmp_path: Path) -> None:
    png(folders(tmp_path, ["0"]) / "stray.png")
    with pytest.raises(BadInputError, match=r"stray\.png lies outside"):
        labelled_files(tmp_path, class_names=None)


def test_empty_class_folders(tmp_path: Path) -> None:
    (folders(tmp_path, ["0"]) / "1").mkdir()
    assert [file.label for file in labelled_files(tmp_path, class_names=None)] == [0]
    (tmp_path / "0" / "1.png").unlink()
    with pytest.raises(BadInputError, match="its class folders are empty"):
        labelled_files(tmp_path, class_names=None)


def test_folders_may_be_called_by_the_ids_of_their_data_set(tmp_path: Path) -> None:
    names, ids = ["tench", "goldfish", "shark"], ["n01440764", "n01443537", "n01484850"]
    files = labelled_files(folders(tmp_path, ["n01484850", "n01440764"]), class_names=names, class_ids=ids)
    assert [(file.path.parent.name, file.label) for file in files] == [("n01440764", 0), ("n01484850", 2)]
    with pytest.raises(BadInputError, match="do not fit"):
        labelled_files(tmp_path, class_names=names)
