"""Images without content: noise with the spectrum and the colour statistics of natural images.

The amplitude of natural images falls with spatial frequency f about as 1/f (Field 1987, "Relations between
the statistics of natural images and the response properties of cortical cells"); their colour channels are
strongly correlated. Such noise reaches activation ranges that flat noise does not. It is a fallback: ranges
from real images are better.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mixport.storage.images import Pixels

#: Part of the cache key: change it whenever the pixels of a seed change.
VERSION = "noise-1"

_SLOPE = (0.8, 1.3)
_BRIGHTNESS = (0.3, 0.6)
_CONTRAST = (0.12, 0.3)
_FLAT_NOISE = (0.0, 0.08)
_SHARED_COLOUR = 0.85


def noise_image(*, seed: int, index: int, size: tuple[int, int]) -> Pixels:
    """Image `index` of a seed, uint8 [H, W, 3]; it depends on nothing else."""
    height, width = size
    # Raw words of a counter-based generator: NumPy promises these for ever, unlike the streams of Generator's
    # methods.
    generator = np.random.Philox(key=[seed, index])
    slope, brightness, contrast, flat = (
        low + (high - low) * value
        for (low, high), value in zip(
            (_SLOPE, _BRIGHTNESS, _CONTRAST, _FLAT_NOISE), _uniform(generator, (4,)), strict=True
        )
    )
    fields = _coloured(_uniform(generator, (4, height, width)) - 0.5, slope=slope)
    channels = _SHARED_COLOUR * fields[:1] + (1.0 - _SHARED_COLOUR) * fields[1:]
    spread = channels.std()
    natural = brightness + contrast * channels / (spread if spread > 0.0 else 1.0)
    pixels = natural + flat * (2.0 * _uniform(generator, (3, height, width)) - 1.0)
    return np.ascontiguousarray(
        np.rint(np.clip(pixels, 0.0, 1.0) * 255.0).astype(np.uint8).transpose(1, 2, 0)
    )


def _coloured(white: NDArray[np.float64], *, slope: float) -> NDArray[np.float64]:
    """Give white fields [..., H, W] an amplitude of 1 / f^slope and mean 0."""
    height, width = white.shape[-2:]
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    return np.fft.irfft2(np.fft.rfft2(white) * frequency**-slope, s=(height, width))


def _uniform(generator: np.random.Philox, shape: tuple[int, ...]) -> NDArray[np.float64]:
    words = np.asarray(generator.random_raw(int(np.prod(shape))), np.uint64)
    return ((words >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(shape)
