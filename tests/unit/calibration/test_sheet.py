from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFont

from mixport.calibration.sheet import contact_sheet, wrap
from mixport.records.errors import BadInputError, StoreError

MARGIN, GAP = 28, 14
FONT = ImageFont.load_default(size=12)


def folder(tmp_path: Path, *, images: int, size: tuple[int, int]) -> tuple[Path, NDArray[np.uint8]]:
    pixels = np.random.default_rng(0).integers(0, 256, (images, *size, 3), np.uint8)
    np.save(tmp_path / "images.npy", pixels)
    return tmp_path, pixels


def sheet(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path))


def test_small_images_are_enlarged_by_whole_factors(tmp_path: Path) -> None:
    where, images = folder(tmp_path, images=5, size=(8, 16))
    assert contact_sheet(where, tmp_path / "sheet.png", columns=2, limit=3) == 3
    found = sheet(tmp_path / "sheet.png")
    assert found.shape == (2 * MARGIN + 2 * 48 + GAP, 2 * MARGIN + 2 * 96 + GAP, 3)
    right, below = MARGIN + 96 + GAP, MARGIN + 48 + GAP
    np.testing.assert_array_equal(found[MARGIN : MARGIN + 48 : 6, right : right + 96 : 6], images[1])
    np.testing.assert_array_equal(found[below : below + 48 : 6, MARGIN : MARGIN + 96 : 6], images[2])
    assert (found[0] == found[0, 0]).all()
    assert found[0, 0].min() > 200, "a light background"


def test_large_images_are_made_smaller(tmp_path: Path) -> None:
    where, _ = folder(tmp_path, images=1, size=(512, 256))
    contact_sheet(where, tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").size == (128 + 2 * MARGIN, 256 + 2 * MARGIN)


def test_prompts_stand_below_their_images_and_the_title_above(tmp_path: Path) -> None:
    where, images = folder(tmp_path, images=2, size=(32, 32))
    contact_sheet(where, tmp_path / "plain.png")
    contact_sheet(
        where,
        tmp_path / "full.png",
        title=["calibration", "recipe abc"],
        prompts=["a photo of a cat and a dog", ""],
    )
    plain, full = sheet(tmp_path / "plain.png"), sheet(tmp_path / "full.png")
    paper = full[0, 0]
    top = next(
        row
        for row in range(len(full))
        if (full[row : row + 96 : 3, MARGIN : MARGIN + 96 : 3] == images[0]).all()
    )
    assert top > MARGIN + 40, "room for two lines of title"
    assert (full[MARGIN:top] != paper).any(), "the title is written"
    assert len(full) - top > len(plain) - MARGIN, "room for captions"
    caption, none = (
        full[top + 97 : -MARGIN, MARGIN : MARGIN + 96],
        full[top + 97 : -MARGIN, MARGIN + 96 + GAP : MARGIN + 2 * 96 + GAP],
    )
    assert (caption != paper).any()
    assert (none == paper).all(), "an empty prompt writes nothing"
    assert (full[-MARGIN:] == paper).all(), "even margins"
    assert (full[:, -MARGIN:] == paper).all()


def test_a_narrow_sheet_has_room_for_its_title(tmp_path: Path) -> None:
    where, _ = folder(tmp_path, images=1, size=(32, 32))
    contact_sheet(where, tmp_path / "sheet.png", title=["512 calibration images"])
    assert Image.open(tmp_path / "sheet.png").size[0] == 480 + 2 * MARGIN


@pytest.mark.parametrize(
    ("text", "width", "lines", "expected"),
    [
        ("", 100, 3, []),
        ("a cat", 100, 3, ["a cat"]),
        ("a cat and a dog", 40, 3, ["a cat", "and a", "dog"]),
        ("  a   cat ", 100, 3, ["a cat"]),
    ],
)
def test_text_is_wrapped(text: str, width: int, lines: int, expected: list[str]) -> None:
    assert wrap(text, font=FONT, width=width, lines=lines) == expected


@pytest.mark.parametrize(
    "text", ["one two three four five six seven eight nine ten", "x" * 200, "a " + "y" * 90, "WWWWWWWW " * 9]
)
@pytest.mark.parametrize("lines", [1, 2, 4])
def test_every_line_fits_and_cut_text_says_so(text: str, lines: int) -> None:
    made = wrap(text, font=FONT, width=60, lines=lines)
    assert 1 <= len(made) <= lines
    assert all(FONT.getlength(line) <= 60 for line in made)
    whole = "".join("".join(made).split()) == "".join(text.split())
    assert whole != made[-1].endswith("...")


def test_sheets_that_cannot_be(tmp_path: Path) -> None:
    where, _ = folder(tmp_path, images=2, size=(8, 8))
    with pytest.raises(BadInputError, match="columns is 0"):
        contact_sheet(where, tmp_path / "sheet.png", columns=0)
    with pytest.raises(BadInputError, match="not a whole calibration set"):
        contact_sheet(tmp_path / "nowhere", tmp_path / "sheet.png")
    with pytest.raises(StoreError, match="cannot be written"):
        contact_sheet(where, tmp_path / "nowhere" / "sheet.png")
    np.save(tmp_path / "images.npy", np.zeros((2, 3)))
    with pytest.raises(BadInputError, match=r"allowed uint8 \[N, H, W, 3\]"):
        contact_sheet(where, tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()


def test_a_sheet_of_too_many_pixels(tmp_path: Path) -> None:
    where, _ = folder(tmp_path, images=1000, size=(256, 256))
    with pytest.raises(BadInputError, match="allowed 64000000") as caught:
        contact_sheet(where, tmp_path / "sheet.png", limit=1000)
    assert caught.value.hint == "use a smaller --limit"
