"""Is the captured graph the model, and is the model one that a fixed graph can stand for? Asked once, before any quantisation."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from mixport.errors import InvariantError, UnsupportedModelError
from mixport.quantize.capture import Captured
from mixport.quantize.float_model import FloatModel

_TOLERANCE = 1e-3
"""Of the largest output: folding and rewriting change the order of float32 sums in networks of a hundred layers."""


def check_sound(model: FloatModel, captured: Captured, images: Tensor) -> None:
    """Compare the model with itself and with its captured graph on a few images.

    Args:
        model: float model.
        captured: its canonical graph.
        images: float32 [N, 3, H, W], N at least 2.

    Raises:
        UnsupportedModelError: the output is random, depends on the other images of a batch, or comes from attention that sees nothing.
        InvariantError: a rewrite of ours changed the function.
    """
    with torch.no_grad():
        single = torch.cat([model.module(image[None]) for image in images])
        if not _close(torch.cat([model.module(image[None]) for image in images]), single):
            raise UnsupportedModelError(
                f"{model.source}: two runs on the same image differ", hint="remove dropout and random numbers from forward in eval mode"
            )
        if captured.dynamic_batch and not _close(model.module(images), single):
            raise UnsupportedModelError(
                f"{model.source}: the output for an image depends on the other images of its batch",
                hint="use running statistics (eval mode), and reduce over an image's own axes only",
            )
        one_by_one = not captured.dynamic_batch
        got = torch.cat([_run(captured, image[None]) for image in images]) if one_by_one else _run(captured, images)
        if got.isnan().any() and not single.isnan().any():
            raise UnsupportedModelError(
                f"{model.source}: written out operator by operator, the model gives NaN",
                hint="an attention mask that hides every score of a row does this: leave such rows out",
            )
        if not _close(got, single):
            error = float((got - single).abs().max())
            raise InvariantError(f"{model.source}: the captured graph differs from the model by {error:.3g}")


def _run(captured: Captured, images: Tensor) -> Tensor:
    """The graph's one output; torch.export wraps it in a tuple where the module did."""
    result: Any = captured.graph(images)
    return cast("Tensor", result[0]) if isinstance(result, tuple) else result


def _close(got: Tensor, expected: Tensor) -> bool:
    if got.shape != expected.shape:
        return False
    return float((got - expected).abs().max()) <= _TOLERANCE * float(expected.abs().max()) + 1e-6
