"""Prompts of a calibration set: class names fused into short texts, one for each image, with the image's own
seed.

Several class names in one prompt are the remedy of arXiv 2507.21947 against label polysemy; one adjective and
one class is GenQ's prompt (arXiv 2312.05272). Template, pairing and label text are fields of the recipe,
since neither paper states them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from mixport.calibration.prompts import class_pairing as pairing
from mixport.calibration.prompts.class_names import check_class_names
from mixport.calibration.prompts.keyed_random import Stream, below, words
from mixport.calibration.prompts.phrases import ADJECTIVES, DEFAULT_TEMPLATE, check_template, fill
from mixport.calibration.recipe import DRAWN, PromptRecipe
from mixport.records.errors import BadInputError, BadOptionError, InvariantError

TextSimilarity = Callable[[Sequence[str]], NDArray[np.float32]]
"""From C texts to the cosine of every two of their embeddings, [C, C]."""

_MOST_TOGETHER = 4
_MAX_SEED = 2**63 - 1
_PAIRINGS = ("balanced", "uniform", "far")
_LOW_BITS = 32


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What one image is drawn from.

    Attributes:
        text: for the text encoder.
        classes: indices of the classes in it, in the order of the text.
        seed: of the image's noise, 63 bits.
    """

    text: str
    classes: tuple[int, ...]
    seed: int


def check_prompts(recipe: PromptRecipe) -> tuple[str, ...]:
    """Refuse a recipe that makes no prompts, before anything is loaded; give the labels of its classes.

    Raises:
        BadOptionError: class names, glosses, template, strategy, pairing, seed or classes per prompt that
            cannot be used.
    """
    if recipe.strategy not in DRAWN:
        raise BadOptionError(
            f"prompt strategy is {recipe.strategy!r}, allowed {', '.join(DRAWN)}", hint="--calib mixup"
        )
    if recipe.pairing not in _PAIRINGS:
        raise BadOptionError(
            f"--pairing is {recipe.pairing!r}, allowed {', '.join(_PAIRINGS)}", hint="--pairing balanced"
        )
    if not 0 <= recipe.seed <= _MAX_SEED:
        raise BadOptionError(
            f"the seed of prompts is {recipe.seed}, allowed 0 to {_MAX_SEED}", hint="--seed 0"
        )
    if recipe.label_text not in ("name", "gloss"):
        raise BadOptionError(
            f"--label-text is {recipe.label_text!r}, allowed name, gloss", hint="--label-text name"
        )
    glosses = recipe.glosses if recipe.label_text == "gloss" else None
    if recipe.label_text == "gloss" and glosses is None:
        raise BadOptionError(
            "--label-text gloss needs the meaning of every class, and there are none",
            hint='--classes FILE.json with [{"name": "crane", "gloss": "a large wading bird"}, ...]',
        )
    labels = check_class_names(recipe.class_names, glosses=glosses)
    check_template(recipe.template if recipe.template is not None else DEFAULT_TEMPLATE)
    if recipe.strategy == "mixup":
        _check_together(recipe.classes_per_prompt, classes=len(labels))
    return labels


def prompts(
    recipe: PromptRecipe, *, count: int, similarity: TextSimilarity | None = None
) -> tuple[Prompt, ...]:
    """The first `count` prompts of a recipe. Prompt i depends on the recipe and i: a shorter set is the
    beginning of a longer one.

    Args:
        recipe: `classes_per_prompt` and `pairing` count for mixup only.
        count: 0 or more.
        similarity: for far pairs; it is called once, with the prompt of each class alone. Where it computes
            in floating point, two machines may order classes differently that are equally far.

    Raises:
        BadOptionError: a recipe that `check_prompts` refuses, or far pairs without `similarity`.
        BadInputError: a text encoder that gives no numbers.
    """
    labels = check_prompts(recipe)
    template = recipe.template if recipe.template is not None else DEFAULT_TEMPLATE
    made: list[Prompt] = []
    for index, classes in enumerate(
        islice(_class_choices(recipe, labels=labels, template=template, similarity=similarity), count)
    ):
        adjective = _adjective(recipe.seed, index) if recipe.strategy == "genq" else None
        text = fill(template, labels=[labels[one] for one in classes], adjective=adjective)
        made.append(Prompt(text=text, classes=classes, seed=image_seed(recipe.seed, index)))
    return tuple(made)


def image_seed(seed: int, index: int) -> int:
    """Seed of image `index`, 63 bits; different for every index below 2^32, in its low 32 bits already.

    torch's generator on the CPU looks at the low 32 bits of its seed only (two seeds that differ above draw
    the same noise), so these are a walk with an odd stride through all values, where independent ones would
    meet after some ten thousand images.
    """
    start, stride = words(seed, stream=Stream.SEED_STRIDE, index=0, count=2)
    (high,) = words(seed, stream=Stream.IMAGE_SEED, index=index, count=1)
    low = (start + index * (stride | 1)) % 2**_LOW_BITS
    return (high >> (64 - 31)) << _LOW_BITS | low


def _class_choices(
    recipe: PromptRecipe, *, labels: Sequence[str], template: str, similarity: TextSimilarity | None
) -> Iterator[tuple[int, ...]]:
    classes, together, seed = len(labels), recipe.classes_per_prompt, recipe.seed
    if recipe.strategy != "mixup":
        return pairing.balanced(classes=classes, together=1, seed=seed)
    if recipe.pairing == "balanced":
        return pairing.balanced(classes=classes, together=together, seed=seed)
    if recipe.pairing == "uniform":
        return pairing.uniform(classes=classes, together=together, seed=seed)
    return pairing.far(
        similarity=_similarities(labels, template=template, similarity=similarity),
        together=together,
        seed=seed,
    )


def _similarities(
    labels: Sequence[str], *, template: str, similarity: TextSimilarity | None
) -> NDArray[np.float32]:
    if similarity is None:
        raise BadOptionError(
            "--pairing far needs the generator's text encoder, and there is none", hint="--pairing balanced"
        )
    matrix = similarity([fill(template, labels=[label]) for label in labels])
    if matrix.shape != (len(labels), len(labels)):
        raise InvariantError(f"similarity of {len(labels)} texts has the shape {list(matrix.shape)}")
    if not np.isfinite(matrix).all():
        raise BadInputError(
            "--pairing far: the generator's text encoder gives NaN or infinity", hint="--pairing balanced"
        )
    return matrix


def _adjective(seed: int, index: int) -> str:
    (word,) = words(seed, stream=Stream.ADJECTIVE, index=index, count=1)
    return ADJECTIVES[below(word, len(ADJECTIVES))]


def _check_together(together: int, *, classes: int) -> None:
    if classes < 2:
        raise BadOptionError("mixup prompts fuse at least 2 classes, and there is 1", hint="--calib single")
    if together == 1:
        raise BadOptionError(
            "--classes-per-prompt is 1, allowed 2 or more with mixup; one class a prompt is --calib single",
            hint="--calib single",
        )
    if together > classes:
        raise BadOptionError(
            (
                f"--classes-per-prompt is {together}, more than the {classes} classes there are; allowed "
                f"2 to {min(_MOST_TOGETHER, classes)}"
            ),
            hint="--classes-per-prompt 2",
        )
    if not 2 <= together <= _MOST_TOGETHER:
        raise BadOptionError(
            f"--classes-per-prompt is {together}, allowed 2 to {min(_MOST_TOGETHER, classes)}",
            hint="--classes-per-prompt 2",
        )
