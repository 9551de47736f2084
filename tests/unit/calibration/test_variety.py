from __future__ import annotations

import numpy as np
import pytest

from mixport.calibration.noise import noise_image
from mixport.calibration.variety import Variety, measure_variety, variety_warnings


def noise(count: int) -> np.ndarray:
    return np.stack([noise_image(seed=0, index=index, size=(16, 16)) for index in range(count)])


def messages(images: np.ndarray) -> list[str]:
    return [one.message for one in variety_warnings(measure_variety(images))]


def test_spread_is_the_deviation_of_a_pixel_over_images() -> None:
    images = np.zeros((2, 4, 4, 3), np.uint8)
    images[1] = 100
    images[:, 0, 0] = 0  # one place of 16 is the same in both
    found = measure_variety(images)
    assert (found.images, found.distinct) == (2, 2)
    assert found.spread == pytest.approx(50.0 * 15 / 16)


def test_images_as_they_should_be_draw_no_warning() -> None:
    assert messages(noise(32)) == []


def test_black_images_are_one_image_and_alike_and_empty() -> None:
    few, alike, flat = messages(np.zeros((32, 16, 16, 3), np.uint8))
    assert few.startswith("1 different image (32 with the equal ones), fewer than 32")
    assert "a pixel varies by 0.0 grey levels of 255" in alike
    assert flat.startswith("100% of the images have one colour all over")


def test_three_images_are_few() -> None:
    (few,) = messages(noise(3))
    assert few.startswith("3 different images, fewer than 32")


def test_frames_of_one_scene_are_alike() -> None:
    rng = np.random.default_rng(0)
    scene = noise_image(seed=1, index=0, size=(16, 16)).astype(np.int64)
    frames = np.clip(scene + rng.integers(-3, 4, (40, 16, 16, 3)), 0, 255).astype(np.uint8)
    (alike,) = messages(frames)
    assert "the images are alike" in alike


def test_one_image_is_few_but_not_alike() -> None:
    assert [one.about for one in variety_warnings(Variety(images=1, distinct=1, spread=0.0, flat=0.0))] == [
        "calibration images"
    ]
