import pytest
import torch

from training.composites import composites


@pytest.mark.parametrize("k", [2, 3, 4])
def test_equal_parts_stay_what_they_are(k: int) -> None:
    parts = torch.full((5, k, 3, 32, 32), 0.25)
    made = composites(parts, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(made, torch.full((5, 3, 32, 32), 0.25), rtol=0, atol=1e-5)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_every_part_has_its_share_of_every_image(k: int) -> None:
    for part in range(k):
        parts = torch.zeros((64, k, 3, 32, 32))
        parts[:, part] = 1.0
        share = composites(parts, generator=torch.Generator().manual_seed(1)).mean(dim=(1, 2, 3))
        assert share.min() > 0.15 / k
        assert abs(share.mean() - 1.0 / k) < 0.1


def test_the_generator_decides_alone() -> None:
    parts = torch.rand((3, 2, 3, 32, 32))
    made = [composites(parts, generator=torch.Generator().manual_seed(seed)) for seed in (4, 4, 5)]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
