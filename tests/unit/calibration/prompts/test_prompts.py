from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mixport.calibration.prompts.phrases import ADJECTIVES
from mixport.calibration.prompts.prompts import Prompt, image_seed, prompts
from mixport.calibration.recipe import PromptRecipe
from mixport.records.errors import BadInputError, BadOptionError, InvariantError

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MIXUP = PromptRecipe(strategy="mixup", class_names=NAMES)
SINGLE = PromptRecipe(strategy="single", class_names=NAMES)
GENQ = PromptRecipe(strategy="genq", class_names=NAMES)


def line(texts: Sequence[str]) -> NDArray[np.float32]:
    place = np.arange(len(texts), dtype=np.float32)
    return -np.abs(place[:, None] - place[None, :])


def test_the_first_prompts_are_these_for_ever() -> None:
    """A change here makes every cached set another one."""
    assert prompts(MIXUP, count=3) == (
        Prompt(text="A photo of a dog and an airplane", classes=(5, 0), seed=3958268632434180567),
        Prompt(text="A photo of a cat and a frog", classes=(3, 6), seed=8594255515316044434),
        Prompt(text="A photo of a horse and a truck", classes=(7, 9), seed=7030226672836543309),
    )
    assert [prompt.text for prompt in prompts(GENQ, count=2)] == [
        "A photo of an embroidered dog",
        "A photo of a large cat",
    ]


def test_texts_say_their_classes() -> None:
    for prompt in prompts(MIXUP, count=40):
        first, second = (("an " if NAMES[one][0] == "a" else "a ") + NAMES[one] for one in prompt.classes)
        assert prompt.text == f"A photo of {first} and {second}"
    for prompt in prompts(replace(MIXUP, classes_per_prompt=3, template="{classes}!"), count=40):
        assert prompt.text.endswith("!") and prompt.text.count(",") == 1 and prompt.text.count(" and ") == 1
        positions = [prompt.text.index(NAMES[one]) for one in prompt.classes]
        assert positions == sorted(positions)


@pytest.mark.parametrize("recipe", [SINGLE, GENQ], ids=["single", "genq"])
def test_one_class_a_prompt_each_once_a_pass(recipe: PromptRecipe) -> None:
    made = prompts(recipe, count=30)
    assert all(len(prompt.classes) == 1 for prompt in made)
    for start in (0, 10, 20):
        assert sorted(prompt.classes[0] for prompt in made[start : start + 10]) == list(range(10))


def test_genq_puts_an_adjective_before_the_class() -> None:
    made = prompts(GENQ, count=500)
    used = {
        prompt.text.removesuffix(NAMES[prompt.classes[0]]).split(maxsplit=4)[4].strip() for prompt in made
    }
    assert used == set(ADJECTIVES)
    assert all(prompt.text.startswith(("A photo of a ", "A photo of an ")) for prompt in made)


def test_pairings_differ() -> None:
    kinds = [
        prompts(replace(MIXUP, pairing=pairing), count=20, similarity=line)
        for pairing in ("balanced", "uniform", "far")
    ]
    assert len({tuple(prompt.classes for prompt in made) for made in kinds}) == 3


def test_far_asks_for_the_similarity_of_whole_prompts_once() -> None:
    asked: list[list[str]] = []

    def similarity(texts: Sequence[str]) -> NDArray[np.float32]:
        asked.append(list(texts))
        return line(texts)

    made = prompts(
        replace(MIXUP, pairing="far", template="Sketch of {classes}"), count=50, similarity=similarity
    )
    assert asked == [[f"Sketch of {'an' if name[0] == 'a' else 'a'} {name}" for name in NAMES]]
    assert min(abs(a - b) for a, b in (prompt.classes for prompt in made)) >= 3


def test_far_without_similarity_or_with_a_wrong_one() -> None:
    far = replace(MIXUP, pairing="far")
    with pytest.raises(BadOptionError, match="needs the generator's text encoder"):
        prompts(far, count=4)
    with pytest.raises(InvariantError, match=r"shape \[2, 2\]"):
        prompts(far, count=4, similarity=lambda _: np.ones((2, 2), np.float32))
    with pytest.raises(BadInputError, match="NaN or infinity"):
        prompts(far, count=4, similarity=lambda texts: np.full((len(texts), len(texts)), np.nan, np.float32))


def test_glosses_are_part_of_the_text() -> None:
    recipe = PromptRecipe(
        strategy="single",
        class_names=("kite", "crane"),
        glosses=("a bird of prey", "a wading bird"),
        label_text="gloss",
        template="{classes}",
    )
    assert {prompt.text for prompt in prompts(recipe, count=2)} == {
        "a kite (a bird of prey)",
        "a crane (a wading bird)",
    }
    plain = replace(recipe, label_text="name")
    assert {prompt.text for prompt in prompts(plain, count=2)} == {"a kite", "a crane"}


def test_seeds_of_images_differ_where_torch_looks() -> None:
    seeds = [image_seed(0, index) for index in range(20_000)]
    assert len({seed % 2**32 for seed in seeds}) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) >= 2**62
    assert image_seed(1, 0) != image_seed(0, 0)


def test_the_reason_torch_looks_at_the_low_half_of_a_cpu_seed() -> None:
    def noise(seed: int) -> list[float]:
        return torch.randn(4, generator=torch.Generator().manual_seed(seed)).tolist()

    assert noise(5) == noise(5 + 2**32)
    assert noise(5) != noise(6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes_per_prompt": 1}, "--classes-per-prompt is 1, .* --calib single"),
        ({"classes_per_prompt": 5}, "--classes-per-prompt is 5, allowed 2 to 4"),
        ({"classes_per_prompt": 0}, "--classes-per-prompt is 0, allowed 2 to 4"),
        ({"classes_per_prompt": 11}, "is 11, more than the 10 classes there are; allowed 2 to 4"),
        (
            {"classes_per_prompt": 3, "class_names": ("cat", "dog")},
            "is 3, more than the 2 classes there are; allowed 2 to 2",
        ),
        ({"class_names": ("cat",)}, "fuse at least 2 classes, and there is 1"),
        ({"class_names": ()}, "the list of class names is empty"),
        ({"class_names": ("cat", "CAT")}, "read the same"),
        ({"template": "A photo"}, "allowed exactly one, {classes}"),
        ({"template": ""}, "allowed exactly one, {classes}"),
        ({"label_text": "gloss"}, "--label-text gloss needs the meaning of every class"),
        ({"label_text": "both"}, "--label-text is 'both', allowed name, gloss"),
        ({"pairing": "near"}, "--pairing is 'near', allowed balanced, uniform, far"),
        ({"strategy": "cutmix"}, "prompt strategy is 'cutmix', allowed mixup, single, genq"),
        ({"seed": -1}, "seed of prompts is -1"),
        ({"seed": 2**63}, "seed of prompts is 9223372036854775808"),
    ],
)
def test_what_makes_no_prompts_is_explained(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BadOptionError, match=message) as caught:
        prompts(replace(MIXUP, **changes), count=1)
    assert caught.value.hint is not None


def test_one_class_is_enough_for_single() -> None:
    assert [
        prompt.text for prompt in prompts(PromptRecipe(strategy="single", class_names=("cat",)), count=2)
    ] == ["A photo of a cat"] * 2


def test_the_largest_seed_works() -> None:
    assert len(prompts(replace(MIXUP, seed=2**63 - 1), count=3)) == 3
