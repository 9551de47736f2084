from __future__ import annotations

import numpy as np
import pytest

from mixport.calibration.noise import noise_image
from mixport.records.fingerprint import sha256_arrays


def test_an_image_depends_on_seed_and_index_alone() -> None:
    first = noise_image(seed=1, index=2, size=(16, 12))
    assert first.shape == (16, 12, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, noise_image(seed=1, index=2, size=(16, 12)))
    assert (first != noise_image(seed=1, index=3, size=(16, 12))).any()
    assert (first != noise_image(seed=2, index=2, size=(16, 12))).any()


def test_the_pixels_of_a_seed_never_change() -> None:
    """Where this fails on purpose, change noise.VERSION too: it is part of the cache key."""
    assert sha256_arrays({"a": noise_image(seed=0, index=0, size=(32, 32))})[:16] == "8b8bc41ac58448ff"


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 3)])
def test_small_sizes(size: tuple[int, int]) -> None:
    assert noise_image(seed=0, index=0, size=size).shape == (*size, 3)


def test_the_spectrum_falls_and_colours_go_together() -> None:
    images = np.stack([noise_image(seed=0, index=index, size=(64, 64)) for index in range(40)]).astype(
        np.float64
    )
    assert 60 < images.mean() < 180
    grey = images.mean(axis=3) - images.mean(axis=(1, 2, 3))[:, None, None]
    amplitude = np.abs(np.fft.fft2(grey)).mean(axis=0)
    low, high = amplitude[0, 2:5].mean(), amplitude[0, 16:28].mean()
    slope = np.log(low / high) / np.log(22 / 3)
    assert 0.6 < slope < 1.4
    red, green = images[..., 0].ravel(), images[..., 1].ravel()
    assert np.corrcoef(red, green)[0, 1] > 0.7
