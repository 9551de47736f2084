"""Textures: how much fine structure a place has counts, where it lies does not."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.decoder import band_energies, feature_texture_distance, texture_distance


@pytest.fixture
def grain() -> Tensor:
    return torch.randn((4, 3, 32, 32), generator=torch.Generator().manual_seed(0)) * 0.2


def test_nothing_separates_images_from_themselves(grain: Tensor) -> None:
    assert texture_distance(grain, grain).item() == 0.0
    assert feature_texture_distance(grain, grain).item() == 0.0


def test_a_blurred_texture_is_farther_than_another_of_its_kind(grain: Tensor) -> None:
    other = torch.randn(grain.shape, generator=torch.Generator().manual_seed(1)) * 0.2
    blurred = F.avg_pool2d(grain, 3, 1, 1)
    # Pixel by pixel it is the other way round, which is why a pixel loss blurs.
    assert F.l1_loss(blurred, grain) < F.l1_loss(other, grain)
    assert texture_distance(blurred, grain) > 2 * texture_distance(other, grain)
    assert feature_texture_distance(blurred, grain) > 2 * feature_texture_distance(other, grain)


def test_bands_see_no_flat_and_no_slow_change() -> None:
    slope = torch.linspace(-1.0, 1.0, 32).expand(1, 1, 32, 32)
    for flat in (torch.full((1, 1, 32, 32), 0.7), slope):
        for energy in band_energies(flat):
            # Only the floor under the root is left, away from the edges, where a reflected slope has a kink.
            torch.testing.assert_close(
                energy[..., 1:-1, 1:-1],
                torch.full_like(energy[..., 1:-1, 1:-1], 1e-5).sqrt(),
                rtol=1e-3,
                atol=0,
            )


def test_energy_is_measured_where_it_is(grain: Tensor) -> None:
    left = grain.clone()
    left[..., 16:] = 0.0
    fine, coarse = band_energies(left)
    assert fine.shape == coarse.shape == (4, 3, 7, 7)
    assert fine[..., :2].min() > 0.05
    assert fine[..., 5:].max() < 0.01


def test_gradients_are_finite_where_nothing_varies() -> None:
    flat = torch.zeros((1, 3, 32, 32), requires_grad=True)
    target = torch.rand((1, 3, 32, 32), generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad(
        texture_distance(flat, target) + feature_texture_distance(flat, target), flat
    )
    assert torch.isfinite(gradient).all()
