"""How often the denoiser's training sees images of one, two, ... classes."""

from __future__ import annotations

import pytest
import torch

from training.denoiser import chances

_CLASSES = torch.tensor([[3, -1, -1, -1]] * 90 + [[3, 5, -1, -1]] * 8 + [[0, 3, 5, -1]] * 2, dtype=torch.int8)


def _share(likely: torch.Tensor, count: int) -> float:
    of_this = (_CLASSES >= 0).sum(1) == count
    return float(likely[of_this].sum() / likely.sum())


def test_batches_have_the_shares_however_rare_the_images_are() -> None:
    likely = chances(_CLASSES, shares={1: 0.5, 2: 0.2, 3: 0.3})
    assert likely.shape == (100,)
    assert [_share(likely, k) for k in (1, 2, 3)] == pytest.approx([0.5, 0.2, 0.3])


def test_a_share_that_no_image_has_goes_to_the_others() -> None:
    likely = chances(_CLASSES, shares={1: 0.4, 2: 0.1, 3: 0.3, 4: 0.2})
    assert torch.isfinite(likely).all()
    assert [_share(likely, k) for k in (1, 2, 3)] == pytest.approx([0.5, 0.125, 0.375])


def test_images_without_a_share_are_never_drawn() -> None:
    likely = chances(_CLASSES, shares={1: 1.0})
    assert float(likely[90:].abs().max()) == 0.0
