from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mixport.quantize.gradients import NotLearnedError, backward, gradient
from mixport.quantize.learn.loop.activation_store import Activations
from mixport.quantize.learn.reconstruction.perturbation import Behind, perturbation_hessian


def leaf() -> Tensor:
    return torch.tensor([2.0, 3.0], requires_grad=True)


def test_both_parts_have_gradients() -> None:
    x = leaf()
    backward(x.square().sum(), x.sum())
    assert x.grad is not None and x.grad.tolist() == [5.0, 7.0]
    backward(x.sum(), 0.0)
    assert x.grad.tolist() == [6.0, 8.0]


def test_a_regulariser_alone_teaches_nothing() -> None:
    with pytest.raises(NotLearnedError, match="does not depend on what could be learned"):
        backward(torch.tensor(1.0), leaf().sum())


def test_an_operator_without_a_derivative_is_named() -> None:
    x = leaf()
    with pytest.raises(NotLearnedError, match="derivative for aten::copy is not implemented"):
        gradient(torch.ops.aten.copy.default(x, x).sum(), x)
    assert gradient(x.square().sum(), x).tolist() == [4.0, 6.0]


def test_outputs_that_depend_on_nothing_have_no_perturbation_hessian() -> None:
    values = torch.randn(2, 3)
    kept = Activations(values, images=2, batch=2, allocate=torch.empty)
    kept.put(0, values)
    behind = Behind(run=lambda value, images: values, outputs=kept)
    with pytest.raises(NotLearnedError, match="do not depend on its output"):
        perturbation_hessian(behind, kept, temperature=1.0, batch=2)
