"""Gradients of a unit's loss, and the reasons why there are none."""

# torch leaves some signatures of tensors without types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class NotLearnedError(ArithmeticError):
    """Nothing that was learned may be used: the loss became NaN or infinite, no gradient reaches what is
    learned, or it is no better.
    """


def backward(loss: Tensor, regulariser: Tensor | float) -> None:
    """Gradients of the sum of both, into its leaves. Raises NotLearnedError where the loss itself reaches
    nothing that is learned.
    """
    if not loss.requires_grad:
        raise NotLearnedError("its output does not depend on what could be learned")
    with _derivatives():
        (loss + regulariser).backward()


def gradient(value: Tensor, at: Tensor) -> Tensor:
    """Gradient of a scalar with respect to `at`, in its shape. Raises NotLearnedError where there is none."""
    return gradients(value, [at])[0]


def gradients(value: Tensor, at: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The same with respect to several tensors; zeros for those that the scalar does not depend on, while it
    depends on one.
    """
    if not value.requires_grad:
        raise NotLearnedError("the model's outputs do not depend on its output")
    with _derivatives():
        return torch.autograd.grad(value, list(at), allow_unused=True, materialize_grads=True)


@contextmanager
def _derivatives() -> Generator[None]:
    """Makes an operator without a derivative a NotLearnedError."""
    try:
        yield
    except RuntimeError as error:
        if "derivative for" not in str(error):
            raise
        raise NotLearnedError(str(error).splitlines()[0]) from error
