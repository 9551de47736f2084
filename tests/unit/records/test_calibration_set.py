from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mixport.records.calibration_set import CalibrationSet
from mixport.records.errors import StoreError


def calibration(path: Path) -> CalibrationSet:
    return CalibrationSet(
        images_path=path, count=2, method="noise", recipe_key="a" * 64, content_sha256="b" * 64
    )


def test_images_are_opened_in_place(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.ones((2, 4, 4, 3), np.uint8))
    images = calibration(tmp_path / "images.npy").open_images()
    assert isinstance(images, np.memmap)
    assert images.shape == (2, 4, 4, 3)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "are gone"), (b"", "cannot be read"), (b"no array", "cannot be read")]
)
def test_images_that_went_away_are_explained(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "images.npy").write_bytes(content)
    with pytest.raises(StoreError, match=message) as caught:
        calibration(tmp_path / "images.npy").open_images()
    assert caught.value.hint == "run the same command again"
