"""Cross entropy and divergence, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from mixport.train.loop.losses import Objective

# Two images, three classes; softmax of the first is (1/4, 1/4, 1/2), of the second uniform.
OUTPUTS = torch.tensor([[0.0, 0.0, math.log(2.0)], [1.0, 1.0, 1.0]])
IMAGES = torch.zeros(2, 3, 4, 4)
TOLERANCE = 4 * 2.0**-23
"""Logarithms and sums of a few float32 numbers near 1."""


class Teacher(nn.Module):
    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self.outputs = nn.Parameter(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs[: len(x)]


def loss_of(objective: Objective, targets: Tensor | None, outputs: Tensor = OUTPUTS) -> float:
    return float(objective(outputs, targets, objective.taught(IMAGES)))


def test_cross_entropy_of_classes() -> None:
    wanted = (math.log(2.0) + math.log(3.0)) / 2
    found = loss_of(Objective(teacher=None), torch.tensor([2, 0]))
    assert found == pytest.approx(wanted, abs=TOLERANCE)
    found = loss_of(Objective(teacher=None, label_weight=3.0), torch.tensor([2, 0]))
    assert found == pytest.approx(3 * wanted, abs=3 * TOLERANCE)


def test_cross_entropy_of_shares() -> None:
    shares = torch.tensor([[0.25, 0.0, 0.75], [0.0, 0.5, 0.5]])
    wanted = (0.25 * math.log(4.0) + 0.75 * math.log(2.0) + math.log(3.0)) / 2
    assert loss_of(Objective(teacher=None), shares) == pytest.approx(wanted, abs=TOLERANCE)


def test_a_whole_share_is_a_class() -> None:
    whole = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    objective = Objective(teacher=None)
    assert loss_of(objective, whole) == pytest.approx(loss_of(objective, torch.tensor([2, 0])), abs=TOLERANCE)


def test_divergence_from_the_teacher() -> None:
    """Of the teacher's distribution from the student's: sum of q log(q / p), mean over images."""
    objective = Objective(teacher=Teacher(torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])))
    wanted = (math.log(4 / 3) * 2 / 3 + math.log(2 / 3) / 3) / 2
    assert loss_of(objective, None) == pytest.approx(wanted, abs=TOLERANCE)
    twice = Objective(teacher=objective.teacher, teacher_weight=2.0)
    assert loss_of(twice, None) == pytest.approx(2 * wanted, abs=2 * TOLERANCE)


def test_equal_outputs_do_not_diverge() -> None:
    objective = Objective(teacher=Teacher(OUTPUTS.clone()))
    assert loss_of(objective, None) == pytest.approx(0.0, abs=TOLERANCE)
    # Softmax does not see what all outputs share.
    assert loss_of(objective, None, OUTPUTS + 5.0) == pytest.approx(0.0, abs=8 * TOLERANCE)


def test_labels_and_teacher_add_up() -> None:
    labels, teacher = torch.tensor([2, 0]), Teacher(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0]]))
    both = loss_of(Objective(teacher=teacher, teacher_weight=0.5, label_weight=2.0), labels)
    apart = loss_of(Objective(teacher=None, label_weight=2.0), labels) + loss_of(
        Objective(teacher=teacher, teacher_weight=0.5), None
    )
    assert both == pytest.approx(apart, abs=4 * TOLERANCE)
    assert loss_of(Objective(teacher=teacher, label_weight=0.0), labels) == loss_of(
        Objective(teacher=teacher), None
    )


def test_the_teacher_gets_no_gradient_and_the_student_does() -> None:
    teacher, outputs = Teacher(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 2.0]])), OUTPUTS.clone()
    objective = Objective(teacher=teacher)
    objective(outputs.requires_grad_(), None, objective.taught(IMAGES)).backward()
    assert teacher.outputs.grad is None
    # Of the mean divergence: (softmax of the student - softmax of the teacher) / images.
    wanted = (OUTPUTS.softmax(1) - teacher.outputs.detach().softmax(1)) / 2
    torch.testing.assert_close(outputs.grad, wanted, rtol=0, atol=TOLERANCE)


def test_outputs_with_empty_axes_are_classes_all_the_same() -> None:
    labels = torch.tensor([2, 0])
    wide = OUTPUTS[:, :, None, None]
    assert loss_of(Objective(teacher=None), labels, wide) == loss_of(Objective(teacher=None), labels)


def test_the_temperature_divides_outputs_and_its_square_multiplies_the_divergence() -> None:
    """At temperature 2 the outputs are half as large."""
    taught = torch.tensor([[0.0, 2.0, 0.0], [1.0, 1.0, 3.0]])
    warm = loss_of(Objective(teacher=Teacher(taught), temperature=2.0, teacher_weight=0.5), None)
    half = loss_of(Objective(teacher=Teacher(taught / 2)), None, OUTPUTS / 2)
    assert warm == pytest.approx(0.5 * 4.0 * half, abs=8 * TOLERANCE)
    labels = torch.tensor([2, 0])
    plain = loss_of(Objective(teacher=None, temperature=2.0), labels)
    assert plain == loss_of(Objective(teacher=None), labels), "labels know no temperature"


def test_amp_passes_the_teacher_in_bfloat16() -> None:
    """Outputs are values that bfloat16 has; what they are compared in is float32."""
    torch.manual_seed(0)
    teacher, images = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), torch.randn(2, 3, 4, 4)
    plain = Objective(teacher=teacher).taught(images)
    fast = Objective(teacher=teacher, amp=True).taught(images)
    assert plain is not None and fast is not None
    assert fast.dtype == torch.float32 and not torch.equal(plain, fast)
    layer = teacher[1]
    assert isinstance(layer, nn.Linear)
    low = nn.functional.linear(
        images.flatten(1).bfloat16(), layer.weight.bfloat16(), layer.bias.bfloat16()
    ).float()
    assert torch.equal(fast, nn.functional.log_softmax(low, dim=1))
