from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from mixport.release.report import strip_images


def noise(count: int, *, side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)


def decoded(uri: str) -> Image.Image:
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_twelve_images_at_even_distances_with_their_prompts() -> None:
    images = noise(48, side=32)
    found = strip_images(images, [f"prompt {index}" for index in range(48)])
    assert [one.prompt for one in found] == [f"prompt {index}" for index in range(0, 48, 4)]
    np.testing.assert_array_equal(np.asarray(decoded(found[3].uri)), images[12])


@pytest.mark.parametrize(("images", "prompts", "shown"), [(5, 5, 5), (5, 3, 3), (0, 0, 0), (13, 13, 12)])
def test_fewer_images_are_all_shown(images: int, prompts: int, shown: int) -> None:
    assert len(strip_images(noise(images, side=4), ["p"] * prompts)) == shown


@pytest.mark.parametrize("side", [32, 52, 53, 96, 224])
def test_the_worst_images_need_less_than_200_kb(side: int) -> None:
    found = strip_images(noise(12, side=side), ["p" * 1000] * 12)
    assert sum(len(one.uri) + len(one.prompt) for one in found) < 200_000
    assert max(decoded(found[0].uri).size) <= 96
