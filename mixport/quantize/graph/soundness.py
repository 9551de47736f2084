"""Is the captured graph the model, and is the model one that a fixed graph can stand for? Asked once, before
any quantisation.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from mixport.model.float_model import FloatModel
from mixport.quantize.graph.capture import Captured
from mixport.quantize.graph.side_effects import side_effect
from mixport.records.errors import InvariantError, UnsupportedModelError

_TOLERANCE = 1e-3
"""Of the largest output: folding and rewriting change the order of float32 sums in networks of a hundred
layers.
"""


def check_sound(model: FloatModel, captured: Captured, images: Tensor) -> None:
    """Compare the model with itself and with its captured graph on a few images.

    Args:
        model: float model.
        captured: its canonical graph.
        images: float32 [N, 3, H, W], N at least 2.

    Raises:
        UnsupportedModelError: the output is not finite, comes from attention that sees nothing, or depends on
            more than the image: on what a run changed, on random numbers, on the other images of a batch.
        InvariantError: a rewrite of ours changed the function.
    """
    given = images.clone()
    with torch.no_grad():
        single = torch.cat([model.module(image[None]) for image in images])
        if not single.isfinite().all():
            raise UnsupportedModelError(
                f"{model.source}: the model gives NaN or infinity for a calibration image",
                hint=(
                    "check the preprocessing (--mean, --std) and the weights; mixport calib show KEY "
                    "shows the images"
                ),
            )
        if not _close(torch.cat([model.module(image[None]) for image in images]), single):
            raise _differs(
                model,
                given[:1],
                "two runs on the same image differ",
                hint=(
                    "forward may depend on its input alone: look for attributes that it counts in, files "
                    "and time"
                ),
            )
        if captured.dynamic_batch and not _close(model.module(images), single):
            raise _differs(
                model,
                given,
                "the output for an image depends on the other images of its batch",
                hint="use running statistics (eval mode), and reduce over an image's own axes only",
            )
        one_by_one = not captured.dynamic_batch
        got = (
            torch.cat([_run(captured, image[None]) for image in images])
            if one_by_one
            else _run(captured, images)
        )
        if got.isnan().any():
            raise UnsupportedModelError(
                f"{model.source}: written out operator by operator, the model gives NaN",
                hint="an attention mask that hides every score of a row does this: leave such rows out",
            )
        if not _close(got, single):
            seen = f"the captured graph differs from the model by {float((got - single).abs().max()):.3g}"
            if side_effect(model.module, given) is not None:
                raise _differs(model, given, seen, hint="")
            raise InvariantError(f"{model.source}: {seen}")


def _differs(model: FloatModel, images: Tensor, seen: str, *, hint: str) -> UnsupportedModelError:
    """What was seen, and what a run of the model does beside giving its output, which explains it."""
    effect = side_effect(model.module, images)
    if effect is None:
        return UnsupportedModelError(f"{model.source}: {seen}", hint=hint)
    repair = (
        f"{effect.repair}; then export model.eval() again" if model.source.endswith(".pt2") else effect.repair
    )
    return UnsupportedModelError(f"{model.source}: {seen}: {effect.what}", hint=repair)


def _run(captured: Captured, images: Tensor) -> Tensor:
    """The graph's one output; torch.export wraps it in a tuple where the module did."""
    result: Any = captured.graph(images)
    return cast("Tensor", result[0]) if isinstance(result, tuple) else result


def _close(got: Tensor, expected: Tensor) -> bool:
    if got.shape != expected.shape:
        return False
    return float((got - expected).abs().max()) <= _TOLERANCE * float(expected.abs().max()) + 1e-6
