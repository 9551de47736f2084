"""The two statistics behind the filters of drawn images, in plain NumPy: BatchNorm sensitivity and
patch-similarity entropy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]

_BINS = 4096
_BANDWIDTH = 0.01
_KERNEL_REACH = 5.0


@dataclass(frozen=True, kw_only=True)
class LayerSums:
    """What one BatchNorm layer reads from a group of images.

    Attributes:
        sums: of the values of each image and channel, float64 [N, C].
        squares: of their squares, float64 [N, C].
        count: values an image and channel.
        mean: the layer's own, float64 [C].
        variance: the layer's own, float64 [C].
    """

    sums: Scores
    squares: Scores
    count: int
    mean: Scores
    variance: Scores


def leave_one_out_sensitivity(layers: Sequence[LayerSums]) -> Scores:
    """S(i) = D(all) - D(all without i), [N]: above 0 where image i takes the group away from the model's
    statistics.

    GenQ (arXiv 2312.05272) defines S and leaves D open; D is here the sum over layers of the Euclidean
    distances of the channels' means and (biased) variances to the layer's own, as in DeepInversion (arXiv
    1912.08795). Each D without an image comes from the sums less that image's, so that N + 1 distances cost
    one pass over the images.

    Args:
        layers: one or more, of the same N of at least 2.
    """
    return np.sum([_distance_of_all(layer) - _distances_without_one(layer) for layer in layers], axis=0)


def similarity_entropy(tokens: Scores) -> float:
    """Differential entropy, in nats, of the cosine similarities among the patch tokens [T, C] of one image, T
    at least 2.

    High where patches differ in many degrees, as those of an object and its background do; low where all
    pairs are equally alike (PSAQ-ViT, arXiv 2203.02250). As in its code the density is estimated with a
    Gaussian kernel of bandwidth 0.01; similarities are first sorted into 4,096 bins, a twentieth of that
    wide, and the integral runs over the whole axis. A token's similarity with itself does not count.
    """
    lengths = np.linalg.norm(tokens, axis=1, keepdims=True)
    unit = tokens / np.where(lengths > 0.0, lengths, 1.0)
    similarity = np.clip((unit @ unit.T)[np.triu_indices(len(tokens), k=1)], -1.0, 1.0)
    step = 2.0 / _BINS
    reach = math.ceil(_KERNEL_REACH * _BANDWIDTH / step)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) * step / _BANDWIDTH) ** 2)
    counts = np.histogram(similarity, bins=_BINS, range=(-1.0, 1.0))[0].astype(np.float64)
    density = np.convolve(counts, kernel)
    density /= density.sum() * step
    occupied = density[density > 0.0]
    return -float((occupied * np.log(occupied)).sum() * step)


def _distance_of_all(layer: LayerSums) -> Scores:
    values = len(layer.sums) * layer.count
    return _distance(layer, layer.sums.sum(0) / values, layer.squares.sum(0) / values)


def _distances_without_one(layer: LayerSums) -> Scores:
    values = (len(layer.sums) - 1) * layer.count
    return _distance(
        layer, (layer.sums.sum(0) - layer.sums) / values, (layer.squares.sum(0) - layer.squares) / values
    )


def _distance(layer: LayerSums, mean: Scores, mean_square: Scores) -> Scores:
    variance = mean_square - mean**2
    return np.linalg.norm(mean - layer.mean, axis=-1) + np.linalg.norm(variance - layer.variance, axis=-1)
