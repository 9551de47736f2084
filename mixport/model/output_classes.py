"""How many classes a model tells apart: one run on one empty image says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mixport.model.float_model import FloatModel
from mixport.records.errors import BadInputError, UnsupportedModelError
from mixport.records.signature import Signature, classifier


def output_classes(model: FloatModel) -> int:
    """Width of the model's output for one image. Raises UnsupportedModelError when it is not one [N, C]
    tensor.
    """
    try:
        with torch.no_grad():
            result = model.module(torch.zeros(model.input_shape))
    except Exception as error:  # the user's own code may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnsupportedModelError(
            (
                f"{model.source}: the model does not run on one float32 input {list(model.input_shape)}: "
                f"{reason}"
            ),
            hint=(
                "--input-size states the size it takes; it must take RGB images in batches, and nothing else"
            ),
        ) from error
    if not isinstance(result, torch.Tensor) or result.dim() != 2:
        got = tuple(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
        raise UnsupportedModelError(f"{model.source}: the output is {got}, expected one tensor [N, classes]")
    return int(np.int64(result.shape[1]))


def signature_of(model: FloatModel) -> Signature:
    """What the model takes and gives, found by running it on one image. Raises as `output_classes`."""
    return classifier(model.input_shape, classes=output_classes(model))


def check_class_count(model: FloatModel, *, source: Path) -> None:
    """Refuse class names that cannot be those of the model's outputs, before images of the wrong classes are
    drawn.

    Does nothing for a model that does not run on one image, or whose output is not [N, classes]: what is
    wrong with it is for `quantize` to say.

    Args:
        model: with class names.
        source: the file that they come from.

    Raises:
        BadInputError: another number of names than outputs.
    """
    if model.class_names is None:
        return
    try:
        outputs = output_classes(model)
    except UnsupportedModelError:
        return
    if len(model.class_names) != outputs:
        raise BadInputError(
            (
                f"class file {source} has {len(model.class_names)} names, and {model.source} has "
                f"{outputs} outputs; allowed one name an output"
            ),
            hint="--classes with the names of this model, in the order of its outputs",
        )
