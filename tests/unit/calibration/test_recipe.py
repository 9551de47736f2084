from __future__ import annotations

import pytest

from mixport.artifacts import Preprocessing
from mixport.calibration import parse_calibration
from mixport.errors import BadOptionError

SMALL = Preprocessing(size=(8, 8), mean=(0, 0, 0), std=(1, 1, 1))


@pytest.mark.parametrize(
    ("text", "method", "source"),
    [("noise", "noise", None), ("images:a/b", "images", "a/b"), ("images:C:/x.npz", "images", "C:/x.npz"), (" noise ", "noise", None)],
)
def test_what_may_be_asked(text: str, method: str, source: str | None) -> None:
    recipe = parse_calibration(text, images=3, seed=4, preprocessing=SMALL)
    assert (recipe.method, recipe.source, recipe.images, recipe.seed) == (method, source, 3, 4)


@pytest.mark.parametrize("method", ["mixup", "single", "genq", "distill"])
def test_methods_to_come_say_so(method: str) -> None:
    with pytest.raises(BadOptionError, match=f"{method} is not part of this version yet") as caught:
        parse_calibration(method, images=3, seed=4, preprocessing=SMALL)
    assert caught.value.hint is not None
    assert "--calib images:DIR" in caught.value.hint


@pytest.mark.parametrize("text", ["", "images", "images:", "noise:x", "Noise", "photos:a", ":a"])
def test_other_texts_list_what_is_allowed(text: str) -> None:
    with pytest.raises(BadOptionError, match=r"allowed images:DIR, images:FILE\.npz or noise"):
        parse_calibration(text, images=3, seed=4, preprocessing=SMALL)


@pytest.mark.parametrize(("images", "seed"), [(0, 0), (-1, 0), (1_000_001, 0), (1, -1), (1, 2**63)])
def test_numbers_are_bounded(images: int, seed: int) -> None:
    with pytest.raises(BadOptionError, match="allowed"):
        parse_calibration("noise", images=images, seed=seed, preprocessing=SMALL)
