from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mixport.quantize.learn.loop.activation_store import ActivationStore, fill, slices

CPU = torch.device("cpu")


def test_parts_cover_all_images_once() -> None:
    assert list(slices(7, 3)) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert list(slices(1, 64)) == [slice(0, 1)]


@pytest.mark.parametrize("largest", [0, 1 << 30])
@pytest.mark.parametrize("shape", [(4, 5, 6), (3,), (2, 7), (5,), ()], ids=str)
@pytest.mark.parametrize("rows", [1, 4])
def test_values_come_back_as_they_went_in(
    shape: tuple[int, ...], rows: int, largest: int, tmp_path: Path
) -> None:
    values = torch.randn(7 * rows, *shape, generator=torch.Generator().manual_seed(0))
    made = fill(
        7,
        3,
        lambda part: values[part.start * rows : part.stop * rows],
        store=ActivationStore(tmp_path, largest=largest, device=CPU),
    )
    assert (len(made), made.rows) == (7, rows)
    assert torch.equal(made.at(slice(0, 7)), values)
    wanted = torch.tensor([6, 0, 0, 3])
    assert torch.equal(made.at(wanted), values.reshape(7, rows, *shape)[wanted].reshape(4 * rows, *shape))


def test_maps_are_channels_last() -> None:
    made = fill(
        2,
        2,
        lambda part: torch.randn(2, 4, 3, 3),
        store=ActivationStore(Path("nowhere"), largest=1 << 30, device=CPU),
    )
    assert made.at(slice(0, 2)).is_contiguous(memory_format=torch.channels_last)


def mapped_files(folder: Path) -> list[str]:
    """Files of a folder that this process has mapped."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return [line[line.index(str(folder)) :] for line in lines if str(folder) in line]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_large_tensors_lie_in_files_without_a_name(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path, largest=4 * 100, device=CPU)
    mapped = store.allocate((101,))
    mapped.fill_(3.0)
    assert list(tmp_path.iterdir()) == []
    assert mapped_files(tmp_path) == [f"{tmp_path}/activations-0.bin (deleted)"]
    assert float(mapped.sum()) == 303.0
    del mapped
    assert mapped_files(tmp_path) == [], "its space goes with the tensor"
    store.allocate((100,))
    assert mapped_files(tmp_path) == [], "100 numbers stay in memory"


def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        ActivationStore(tmp_path, largest=0, device=CPU).allocate((5,))


def test_values_are_computed_in_parts() -> None:
    asked: list[slice] = []

    def value(part: slice) -> Tensor:
        asked.append(part)
        return torch.zeros(part.stop - part.start, 2)

    fill(5, 2, value, store=ActivationStore(Path("nowhere"), largest=1 << 30, device=CPU))
    assert asked == [slice(0, 2), slice(2, 4), slice(4, 5)]


def test_values_lie_on_the_device_of_the_room_wherever_they_come_from() -> None:
    with FakeTensorMode():  # shapes and devices alone: no accelerator is needed
        store = ActivationStore(Path("nowhere"), largest=1 << 30, device=torch.device("cuda", 0))
        made = fill(5, 2, lambda part: torch.zeros(part.stop - part.start, 3, 4, 4), store=store)
        assert made.device == torch.device("cuda", 0)
        assert made.at(torch.arange(3, device=made.device)).device == made.device
