from __future__ import annotations

import pytest

from mixport.calibration.recipe import (
    FilterSettings,
    GeneratorSettings,
    PromptRecipe,
    Strategy,
    parse_calibration,
)
from mixport.records.calibration_set import Preprocessing
from mixport.records.errors import BadOptionError

SMALL = Preprocessing(size=(8, 8), mean=(0, 0, 0), std=(1, 1, 1))


@pytest.mark.parametrize(
    ("text", "method", "source"),
    [
        ("noise", "noise", None),
        ("images:a/b", "images", "a/b"),
        ("images:C:/x.npz", "images", "C:/x.npz"),
        (" noise ", "noise", None),
    ],
)
def test_what_may_be_asked(text: str, method: str, source: str | None) -> None:
    recipe = parse_calibration(text, images=3, seed=4, preprocessing=SMALL)
    assert (recipe.method, recipe.source, recipe.images, recipe.seed) == (method, source, 3, 4)


@pytest.mark.parametrize("method", ["mixup", "single", "genq"])
def test_drawn_sets_take_their_parts_or_the_defaults(method: Strategy) -> None:
    prompts = PromptRecipe(strategy=method, class_names=("cat", "dog"))
    plain = parse_calibration(method, images=3, seed=4, preprocessing=SMALL, prompts=prompts)
    assert (plain.method, plain.source, plain.prompts) == (method, None, prompts)
    assert (plain.generator, plain.filters) == (GeneratorSettings(), FilterSettings())
    generator, filters = GeneratorSettings(source="here"), FilterSettings(keep_energy=0.5)
    full = parse_calibration(
        method, images=3, seed=4, preprocessing=SMALL, prompts=prompts, generator=generator, filters=filters
    )
    assert (full.generator, full.filters) == (generator, filters)


def test_a_drawn_set_needs_prompts_of_its_method() -> None:
    with pytest.raises(BadOptionError, match="mixup needs class names") as caught:
        parse_calibration("mixup", images=3, seed=4, preprocessing=SMALL)
    assert caught.value.hint is not None
    assert all(word in caught.value.hint for word in ("--classes FILE.json", "images:DIR", "noise"))
    with pytest.raises(BadOptionError, match="its prompts are for single"):
        parse_calibration(
            "mixup",
            images=3,
            seed=4,
            preprocessing=SMALL,
            prompts=PromptRecipe(strategy="single", class_names=("a",)),
        )


def test_methods_to_come_say_so() -> None:
    with pytest.raises(BadOptionError, match="distill is not part of this version yet") as caught:
        parse_calibration("distill", images=3, seed=4, preprocessing=SMALL)
    assert caught.value.hint == "mixport build --calib mixup ..."


@pytest.mark.parametrize("text", ["", "images", "images:", "noise:x", "mixup:x", "Noise", "photos:a", ":a"])
def test_other_texts_list_what_is_allowed(text: str) -> None:
    with pytest.raises(
        BadOptionError, match=r"allowed mixup, single, genq, images:DIR, images:FILE\.npz or noise"
    ):
        parse_calibration(text, images=3, seed=4, preprocessing=SMALL)


def test_the_home_of_nobody() -> None:
    with pytest.raises(BadOptionError, match="home folder"):
        parse_calibration("images:~nobody-of-that-name/x", images=3, seed=4, preprocessing=SMALL)


@pytest.mark.parametrize(("images", "seed"), [(0, 0), (-1, 0), (1_000_001, 0), (1, -1), (1, 2**63)])
def test_numbers_are_bounded(images: int, seed: int) -> None:
    with pytest.raises(BadOptionError, match="allowed"):
        parse_calibration("noise", images=images, seed=seed, preprocessing=SMALL)
