"""Each loss against a calculation by hand; the perturbation Hessian against autograd's Hessian."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mixport.quantize.learn.loop.activation_store import Activations
from mixport.quantize.learn.reconstruction.losses import UnitLoss, output_error
from mixport.quantize.learn.reconstruction.perturbation import Behind, divergence, perturbation_hessian
from mixport.records.choices.reconstruction_preset import Stage

IMAGES = torch.tensor([0, 1])


def kept(values: Tensor, *, images: int) -> Activations:
    made = Activations(values, images=images, batch=images, allocate=torch.empty)
    made.put(0, values)
    return made


def test_squared_errors_are_summed_over_channels_and_averaged_over_the_rest() -> None:
    target = torch.zeros(2, 3, 1, 2)
    got = torch.arange(12.0).view(2, 3, 1, 2)
    assert float(output_error(got, target)) == pytest.approx(
        sum(i * i for i in range(12)) / 4
    )  # 2 images x 2 pixels
    for shape in ((2, 2, 3), (2, 2, 1, 3)):  # tokens, and maps with channels last
        tokens = output_error(got.view(shape), torch.zeros(shape), channel_axis=len(shape) - 1)
        assert float(tokens) == pytest.approx(sum(i * i for i in range(12)) / 4)
    assert float(output_error(got.view(12), torch.zeros(12))) == pytest.approx(
        sum(i * i for i in range(12)) / 12
    )
    assert float(output_error(got, target, power=2.4)) == pytest.approx(
        sum(i**2.4 for i in range(12)) / 4, rel=1e-5
    )


def test_weights_are_those_of_one_image() -> None:
    got, weights = torch.arange(8.0).view(4, 2), torch.tensor([[1.0, 0.0], [2.0, 3.0]])  # 2 images of 2 rows
    by_hand = (0 * 1 + 1 * 0 + 4 * 2 + 9 * 3 + 16 * 1 + 25 * 0 + 36 * 2 + 49 * 3) / 8 * 2
    assert float(output_error(got, torch.zeros(4, 2), weights=weights)) == pytest.approx(by_hand)


def test_a_loss_can_start_at_a_fixed_value() -> None:
    loss = UnitLoss(Stage(loss_start=2.0))
    target = torch.zeros(2, 3)
    assert float(loss(torch.zeros(2, 3), target, IMAGES)) == 0.0  # nothing to start from yet
    assert float(loss(torch.full((2, 3), 0.5), target, IMAGES)) == pytest.approx(2.0)
    assert float(loss(torch.full((2, 3), 0.25), target, IMAGES)) == pytest.approx(0.5)


def test_the_divergence_is_that_of_softmaxes_at_a_temperature() -> None:
    wanted, got = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    p = 1 / (1 + math.exp(-2.0))
    by_hand = p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)
    assert float(divergence(got, wanted, temperature=2.0)) == pytest.approx(by_hand, rel=1e-5)
    assert float(divergence(wanted, wanted, temperature=2.0)) == 0.0
    maps = torch.stack([got, wanted], -1).expand(3, 2, 2)  # [N, classes, pixels]: one of two pixels is wrong
    assert float(divergence(maps, wanted[..., None].expand(3, 2, 2), temperature=2.0)) == pytest.approx(
        by_hand / 2, rel=1e-5
    )


def test_the_divergence_behind_the_unit_is_added_with_its_weight() -> None:
    matrix = torch.tensor([[1.0, -1.0], [0.5, 2.0], [0.0, 1.0]])
    target = torch.tensor([[1.0, 2.0], [0.0, 1.0], [3.0, -1.0]])
    behind = Behind(run=lambda value, images: value @ matrix.T, outputs=kept(target @ matrix.T, images=3))
    loss = UnitLoss(Stage(logits_weight=10.0, temperature=4.0), behind=behind)
    chosen = torch.tensor([2, 0])
    got = (target[chosen] + 0.3).requires_grad_()
    value = loss(got, target[chosen], chosen)
    p, q = (torch.softmax(rows @ matrix.T / 4.0, 1) for rows in (target[chosen], got.detach()))
    by_hand = 0.09 * 2 + 10.0 * float((p * (p / q).log()).sum() / 2)
    assert float(value.detach()) == pytest.approx(by_hand, rel=1e-4)
    value.backward()
    assert float(got.grad.abs().min()) > 0
    with pytest.raises(ValueError, match="needs the float model"):
        UnitLoss(Stage(logits_weight=1.0))


class _Rest:
    """A smooth network of two layers."""

    def __init__(self, features: int) -> None:
        generator = torch.Generator().manual_seed(2)
        self.first, self.second = (
            torch.randn(6, features, generator=generator),
            torch.randn(4, 6, generator=generator),
        )

    def __call__(self, value: Tensor, images: int) -> Tensor:
        flat = value.reshape(images, -1)
        return torch.tanh(flat @ self.first.to(flat).T * 0.3) @ self.second.to(flat).T

    def hessians(self, values: Tensor, *, temperature: float) -> Tensor:
        """Of the divergence at the float output, for each image: float64 [N, features, features]."""

        def hessian(row: Tensor) -> Tensor:
            wanted = self(row[None], 1)
            return torch.autograd.functional.hessian(
                lambda x: divergence(self(x[None], 1), wanted, temperature=temperature), row
            )

        return torch.stack([hessian(row) for row in values.double().flatten(1)])


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_the_perturbation_hessian_is_the_row_sum_of_autograds_hessian(batch: int) -> None:
    values = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(1))
    rest = _Rest(6)
    behind = Behind(run=rest, outputs=kept(rest(values, 5), images=5))
    found = perturbation_hessian(behind, kept(values, images=5), temperature=3.0, batch=batch)
    size = 2 * 1e-3 * float(values.square().mean().sqrt())
    expected = rest.hessians(values, temperature=3.0).sum(2).abs().mean(0).view(2, 3) * size
    torch.testing.assert_close(found[0].double(), expected, rtol=2e-2, atol=float(expected.max()) * 5e-3)


def test_rows_of_one_image_stay_apart() -> None:
    values = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))  # 3 images of 2 rows
    rest = _Rest(6)
    behind = Behind(run=rest, outputs=kept(rest(values, 3), images=3))
    found = perturbation_hessian(behind, kept(values, images=3), temperature=3.0, batch=2)
    assert found.shape == (2, 3)
    expected = rest.hessians(values.view(3, 6), temperature=3.0).sum(2).abs().mean(0).view(2, 3)
    torch.testing.assert_close(
        (found / found.sum()).double(), expected / expected.sum(), rtol=5e-2, atol=5e-3
    )


def test_a_layernorm_hides_a_common_shift_and_not_random_signs() -> None:
    values = torch.randn(32, 1, 8, generator=torch.Generator().manual_seed(1))
    matrix = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))

    def run(value: Tensor, images: int) -> Tensor:
        return torch.nn.functional.layer_norm(value, (8,))[:, 0] @ matrix.to(value).T

    behind, target = Behind(run=run, outputs=kept(run(values, 32), images=32)), kept(values, images=32)
    common = perturbation_hessian(behind, target, temperature=3.0, batch=32)
    signs = perturbation_hessian(
        behind, target, temperature=3.0, batch=32, signs=torch.Generator().manual_seed(0)
    )
    assert float(common.max()) < 0.01 * float(signs.min())
