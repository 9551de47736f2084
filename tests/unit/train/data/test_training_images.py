"""Which images are trained on, and which are only looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mixport.records.errors import BadInputError
from mixport.train.data.training_images import TrainingImages, split


def images(count: int) -> NDArray[np.uint8]:
    return np.zeros((count, 4, 4, 3), np.uint8)


def cut(count: int, labels: list[int] | None = None, **changes: Any) -> TrainingImages:
    given: dict[str, Any] = {"source": "some.npz", "sha256": "ab", "seed": 3, "classes": 10, **changes}
    made = None if labels is None else np.array(labels, np.int64)
    return split(images(count), made, **given)


@pytest.mark.parametrize(("count", "held"), [(2, 1), (40, 1), (150, 3), (1000, 20), (150_000, 2000)])
def test_every_image_is_in_one_part_and_two_in_a_hundred_are_held_out(count: int, held: int) -> None:
    found = cut(count)
    assert len(found.held_out) == held
    np.testing.assert_array_equal(np.sort(np.concatenate([found.order, found.held_out])), np.arange(count))
    assert (np.diff(found.order) > 0).all() and (np.diff(found.held_out) > 0).all()


def test_the_choice_is_the_seed_s() -> None:
    np.testing.assert_array_equal(cut(500).held_out, cut(500).held_out)
    assert cut(500).held_out.tolist() != cut(500, seed=4).held_out.tolist()
    # Philox's raw words are promised by NumPy: a changed split would change every cached training.
    assert cut(200).held_out.tolist() == cut(200, labels=[1] * 200).held_out.tolist()


def test_what_is_held_out_is_spread() -> None:
    """Files of one class lie next to each other: the first or the last images would be one class alone."""
    held = cut(10_000).held_out
    assert held.min() < 1000 and held.max() > 9000
    assert len(set((held // 1000).tolist())) == 10


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images_are_refused_by_name(count: int) -> None:
    with pytest.raises(BadInputError, match=rf"some\.npz holds {count} images, allowed 2 or more"):
        cut(count)


@pytest.mark.parametrize(("label", "place"), [(10, 3), (-1, 0), (2**40, 2)])
def test_a_label_outside_the_classes_is_refused_by_name(label: int, place: int) -> None:
    labels = [0, 9, 5, 4]
    labels[place] = label
    with pytest.raises(
        BadInputError, match=rf"some\.npz: image {place} has label {label}, allowed 0 to 9: .* 10 outputs"
    ):
        cut(4, labels)


def test_the_ends_of_the_classes_are_allowed() -> None:
    found = cut(4, [0, 9, 9, 0])
    assert found.labels is not None and found.labels.tolist() == [0, 9, 9, 0]
