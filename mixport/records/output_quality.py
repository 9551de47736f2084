"""How far the outputs of a quantised model are from those of the float model, and from where on that is too
far to pass without a word.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mixport.records.errors import BadInputError

SQNR_LIMIT_DB = 300.0
"""Bound of a reported SQNR, in dB: float32 values that differ at all stay far inside."""
WEAK_SQNR_DB = 15.0
"""Below it an output is worth a warning: a thirtieth of what tells images apart is noise."""
WEAK_AGREEMENT = 0.9
"""Below it an output is worth a warning: the models disagree on one image of ten."""
_SPREAD = 2.0**-21
"""An output that varies by no more than this share of itself is constant: float32 sums alone do as much."""


def is_weak(*, sqnr: float | None, same_class: float | None) -> bool:
    """Whether an output with this SQNR in dB and this agreement is worth a warning; None says nothing."""
    return (sqnr is not None and sqnr < WEAK_SQNR_DB) or (
        same_class is not None and same_class < WEAK_AGREEMENT
    )


def agreement(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Share of images on which two sets of logits [N, classes] have the same largest entry, 0 to 1. Raises
    BadInputError.
    """
    if a.shape != b.shape:
        raise BadInputError(f"logits have shapes {list(a.shape)} and {list(b.shape)}, allowed equal ones")
    return int((named_classes(a) == named_classes(b)).sum()) / len(a)


def sqnr_db(reference: NDArray[np.floating], got: NDArray[np.floating]) -> float | None:
    """Signal to quantisation noise of outputs [N, ...] in dB: 10 log10(signal / noise), in float64, kept
    inside +-SQNR_LIMIT_DB.

    signal = sum over outputs of sum over images of (reference - its mean over the images)^2: what an output
    has on every image tells no images apart, so that a constant offset, however large, is no signal. noise =
    sum of (reference - got)^2, all of it. Equal arrays give +SQNR_LIMIT_DB. None where no output varies by
    more than float32 rounding: with one image, with equal images, or with a model whose output is constant.

    Raises:
        BadInputError: different shapes, no image, or values that are not finite.
    """
    if reference.shape != got.shape or reference.ndim == 0 or len(reference) == 0:
        raise BadInputError(
            f"arrays have shapes {list(reference.shape)} and {list(got.shape)}, allowed equal ones "
            "with an image or more"
        )
    exact, approximate = (array.reshape(len(array), -1).astype(np.float64) for array in (reference, got))
    if not (np.isfinite(exact).all() and np.isfinite(approximate).all()):
        raise BadInputError(
            "an output holds NaN or infinity", hint="check the model's weights and the calibration images"
        )
    signal = float(np.square(exact - exact.mean(0))[:, ~constant_outputs(exact)].sum())
    if signal == 0.0:
        return None
    noise = float(np.square(exact - approximate).sum())
    if noise == 0.0:
        return SQNR_LIMIT_DB
    return max(-SQNR_LIMIT_DB, min(SQNR_LIMIT_DB, 10.0 * math.log10(signal / noise)))


def constant_outputs(outputs: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which outputs of [N, O] differ between images by no more than float32 rounding, [O]."""
    exact = outputs.astype(np.float64)
    return np.ptp(exact, axis=0) <= _SPREAD * np.abs(exact).max(0)


def named_classes(logits: NDArray[np.floating]) -> NDArray[np.intp]:
    """Index of the largest of [N, classes] for each image; ties count for the lower index. Raises
    BadInputError.
    """
    if logits.ndim != 2 or 0 in logits.shape:
        raise BadInputError(
            f"logits have shape {list(logits.shape)}, allowed [images, classes], both above 0"
        )
    if np.isnan(logits).any():
        raise BadInputError("logits hold NaN", hint="check the model's weights and the calibration images")
    return logits.argmax(axis=1)
