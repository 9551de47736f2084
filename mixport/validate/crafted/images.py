"""Adversarial images: constants at the input quantiser's extremes, exact ties, huge values, checkerboards and
noise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mixport.validate.interpreter.execution_plan import ExecutionPlan
from mixport.validate.interpreter.values import Saturation

_HUGE = np.float32(1e30)


def adversarial_images(
    plan: ExecutionPlan, *, shape: tuple[int, int, int], multiple: int = 1, seed: int = 0
) -> NDArray[np.float32]:
    """Build the images.

    Args:
        plan: of the file; the quantiser that reads its input sets the scale.
        shape: (C, H, W).
        multiple: repeat images until their number is a multiple of this (a fixed batch).
        seed: of the noise.

    Returns:
        float32 [N, C, H, W].
    """
    quantiser = _input_quantiser(plan)
    scale = np.float32(0.05) if quantiser is None else quantiser.scale
    low, high, zero = (
        (-128, 127, 0) if quantiser is None else (quantiser.low, quantiser.high, quantiser.zero_point)
    )
    rng = np.random.default_rng(seed)
    levels = np.arange(low - zero, high - zero + 1, dtype=np.float64)
    size = int(np.prod(shape))
    smallest, largest = np.float32(levels[0]) * scale, np.float32(levels[-1]) * scale
    ties = np.resize(((levels + 0.5) * np.float64(scale)).astype(np.float32), size)
    above = np.nextafter(ties, np.float32(np.inf), dtype=np.float32)
    below = np.nextafter(ties, np.float32(-np.inf), dtype=np.float32)
    parity = np.indices(shape).sum(axis=0) % 2 == 0
    flat = [
        *(np.full(size, value, np.float32) for value in (smallest, largest, 0.0, -0.0, _HUGE, -_HUGE)),
        ties,
        above,
        below,
        np.where(parity, smallest, largest).reshape(-1),
        np.where(parity, largest, smallest).reshape(-1),
        rng.uniform(smallest, largest, size),
        rng.normal(0.0, float(largest - smallest) / 4, size),
        rng.choice(ties, size),
    ]
    images = np.stack([image.astype(np.float32).reshape(shape) for image in flat])
    missing = -len(images) % multiple
    return np.concatenate([images, images[:1].repeat(missing, axis=0)])


def _input_quantiser(plan: ExecutionPlan) -> Saturation | None:
    inputs = {port.name for port in plan.graph.inputs}
    return next((s.saturation for s in plan.steps if s.how == "quantise" and s.node.input(0) in inputs), None)
