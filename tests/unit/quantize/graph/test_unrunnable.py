from __future__ import annotations

import pytest
import torch.nn.functional as F
from torch import Tensor, nn

from mixport.records.errors import UnsupportedModelError
from tests.unit.quantize.conftest import Capture


class Resized(nn.Module):
    def __init__(self, size: tuple[int, int], **options: bool) -> None:
        super().__init__()
        self.conv, self.size, self.options = nn.Conv2d(3, 4, 1), size, options

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.conv(x), size=self.size, mode="bicubic", **self.options)


@pytest.mark.parametrize("options", [{}, {"align_corners": True}], ids=["centres", "corners"])
def test_a_cubic_resize_that_shrinks_is_refused_at_capture(
    captured: Capture, options: dict[str, bool]
) -> None:
    with pytest.raises(UnsupportedModelError, match="bicubic resize from 16x16 to 24x9") as caught:
        captured(Resized((24, 9), **options))
    assert caught.value.hint and "antialias=True" in caught.value.hint


def test_other_cubic_resizes_pass(captured: Capture) -> None:
    captured(Resized((24, 16)))
    captured(Resized((24, 9), antialias=True))
