"""The deployed file's own predictions: what onnxruntime gives for many images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mixport.records.calibration_set import Preprocessing
from mixport.records.progress import Progress
from mixport.records.targets import Target
from mixport.storage.images import normalise
from mixport.validate.run.session import batches, open_session, static_batch


def predict(
    model_path: Path,
    images: NDArray[np.uint8],
    *,
    preprocessing: Preprocessing,
    target: Target,
    progress: Progress,
    batch: int = 32,
) -> NDArray[np.float32]:
    """Outputs of the file on the target's session policy.

    Args:
        model_path: the ONNX file.
        images: uint8 [N, H, W, 3], normalised here batch by batch, since their float form may not fit in
            memory.
        preprocessing: of the model's input.
        target: names the session policy.
        progress: shows images.
        batch: images a run where the file's batch axis is symbolic.

    Returns:
        float32 [N, classes].

    Raises:
        BadInputError: the runtime refuses the file, or the images do not fill its fixed batch.
    """
    session = open_session(model_path, policy=target.session)
    name = session.get_inputs()[0].name
    fixed = static_batch(model_path)
    parts: list[NDArray[np.float32]] = []
    with progress.track("quantised model", total=len(images)) as advance:
        for start in range(0, len(images), fixed or batch):
            pixels = normalise(images[start : start + (fixed or batch)], preprocessing=preprocessing)
            parts += [
                session.run(None, {name: chunk})[0] for chunk in batches(pixels, batch=batch, fixed=fixed)
            ]
            advance(len(pixels))
    return np.concatenate(parts)
