"""Calibration images as the model reads them: which ones, how many together, and their exact values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mixport.model.float_model import FloatModel
from mixport.quantize.calibration_batches import CalibrationBatches
from mixport.records.calibration_set import CalibrationSet, Preprocessing
from mixport.storage.images import normalise

PREPROCESSING = Preprocessing(size=(2, 2), mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
Make = Callable[..., CalibrationBatches]


@pytest.fixture
def batches(tmp_path: Path) -> Make:
    """`count` images of 2x2 pixels whose first bytes are their number; `side` is that of the model's input,
    which alone says how many are taken.
    """

    def make(count: int, *, side: int = 64, counted: int | None = None) -> CalibrationBatches:
        images = np.random.default_rng(count).integers(0, 256, (count, 2, 2, 3), np.uint8)
        images[:, 0, 0, 0], images[:, 0, 0, 1] = np.arange(count) % 256, np.arange(count) // 256
        np.save(tmp_path / "images.npy", images)
        model = FloatModel(
            module=nn.Identity(),
            name="identity",
            source="tests:identity",
            sha256="",
            preprocessing=PREPROCESSING,
            class_names=None,
            input_shape=(1, 3, side, side),
        )
        calibration = CalibrationSet(
            images_path=tmp_path / "images.npy",
            count=count if counted is None else counted,
            method="images",
            recipe_key="",
            content_sha256="",
        )
        return CalibrationBatches(model=model, calibration=calibration)

    return make


def numbers(images: np.ndarray) -> list[int]:
    low, high = images[:, 0, 0, :2].astype(int).T
    return (low + 256 * high).tolist()


@pytest.mark.parametrize(("side", "sizes"), [(32, [64, 6]), (64, [32, 32, 6]), (1024, [4] * 17 + [2])])
def test_batches_hold_as_many_images_as_the_pixels_allow(batches: Make, side: int, sizes: list[int]) -> None:
    found = batches(70, side=side)
    assert [len(batch) for batch in found.of(found.all())] == sizes


def test_a_fixed_batch_and_a_model_of_one_image_take_them_one_by_one(batches: Make) -> None:
    found = batches(3)
    assert [len(batch) for batch in found.of(found.all(), dynamic_batch=False)] == [1, 1, 1]
    alone = replace(found, model=replace(found.model, one_image=True))
    assert [len(batch) for batch in alone.of(alone.all())] == [1, 1, 1]


def test_batches_are_the_preprocessed_images_in_order(batches: Make) -> None:
    found = batches(40)
    together = torch.cat(list(found.of(found.all())))
    assert together.dtype is torch.float32 and together.shape == (40, 3, 2, 2)
    assert np.array_equal(together.numpy(), normalise(found.all(), preprocessing=PREPROCESSING))
    # (0 / 255 - 0.5) / 0.5 and (0 / 255 - 0.25) / 0.25, of the first image's first pixel
    assert together[0, :2, 0, 0].tolist() == [-1.0, -1.0]


def test_all_is_memory_mapped_and_ends_at_the_count(batches: Make) -> None:
    found = batches(9, counted=6)
    assert isinstance(found.all(), np.memmap)
    assert numbers(found.all()) == [0, 1, 2, 3, 4, 5]
    assert numbers(found.all(most=2)) == [0, 1]
    assert numbers(found.all(most=100)) == [0, 1, 2, 3, 4, 5]
    assert numbers(found.all(most=0)) == []


@pytest.mark.parametrize(("side", "few", "search"), [(16, 32, 256), (64, 8, 256), (256, 4, 64), (512, 4, 32)])
def test_small_images_are_many_and_large_ones_few(batches: Make, side: int, few: int, search: int) -> None:
    found = batches(300, side=side)
    assert numbers(found.few()) == np.linspace(0, 299, few).astype(int).tolist()
    assert numbers(found.for_search()) == np.linspace(0, 299, search).astype(int).tolist()


def test_no_image_is_taken_twice_where_there_are_fewer_than_wanted(batches: Make) -> None:
    found = batches(7, side=16)
    assert numbers(found.few()) == numbers(found.for_search()) == [0, 1, 2, 3, 4, 5, 6]


def test_a_pair_is_the_first_two_images(batches: Make) -> None:
    found = batches(5)
    assert torch.equal(found.pair(), next(iter(found.of(found.all(most=2)))))


def test_the_only_image_is_paired_with_its_mirror(batches: Make) -> None:
    pair = batches(1).pair()
    assert pair.shape == (2, 3, 2, 2) and not torch.equal(pair[0], pair[1])
    assert torch.equal(pair[1], pair[0].flip(-1))
