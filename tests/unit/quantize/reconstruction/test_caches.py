"""Activations of all images: what was put comes back, in the graph's shape."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mixport.quantize.reconstruction.caches import Room, fill, slices


@pytest.mark.parametrize("largest", [10**9, 0])
@pytest.mark.parametrize(("rows", "shape"), [(1, (3, 4, 5)), (4, (7, 6)), (1, (9,)), (2, (3, 4, 5))])
def test_values_come_back_in_any_order(tmp_path: Path, largest: int, rows: int, shape: tuple[int, ...]) -> None:
    values = torch.randn(7 * rows, *shape, generator=torch.Generator().manual_seed(0))
    room = Room(tmp_path, largest=largest, device=torch.device("cpu"))
    made = fill(7, 3, lambda part: values[part.start * rows : part.stop * rows], room=room)
    assert len(made) == 7
    assert made.rows == rows
    assert torch.equal(made.at(slice(2, 6)), values[2 * rows : 6 * rows])
    by_image = values.view(7, rows, *shape)
    wanted = torch.tensor([5, 0, 5])
    assert torch.equal(made.at(wanted), by_image[wanted].reshape(-1, *shape))
    if len(shape) == 3:
        assert made.at(wanted).is_contiguous(memory_format=torch.channels_last)
    assert list(tmp_path.iterdir()) == []


def test_slices_cover_everything_once() -> None:
    assert [(part.start, part.stop) for part in slices(7, 3)] == [(0, 3), (3, 6), (6, 7)]
