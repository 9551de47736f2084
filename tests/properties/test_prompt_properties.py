from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mixport.calibration.filters import filter_images, keep, pool_size
from mixport.calibration.prompts.prompts import prompts
from mixport.calibration.recipe import FilterSettings, PromptRecipe

SEEDS = st.integers(0, 2**63 - 1)
SHARES = st.one_of(st.just(1.0), st.floats(0.01, 1.0), st.sampled_from([0.1, 0.3, 0.7, 0.9]))


def similarity(texts: Sequence[str]) -> NDArray[np.float32]:
    angle = np.arange(len(texts), dtype=np.float32) * 2.4
    return np.cos(angle[:, None] - angle[None, :])


@st.composite
def recipes(draw: st.DrawFn) -> PromptRecipe:
    classes = draw(st.integers(2, 12))
    return PromptRecipe(
        strategy=draw(st.sampled_from(["single", "mixup", "genq"])),
        class_names=tuple(f"thing {index}" for index in range(classes)),
        classes_per_prompt=draw(st.integers(2, min(4, classes))),
        pairing=draw(st.sampled_from(["balanced", "uniform", "far"])),
        seed=draw(SEEDS),
    )


@given(recipes(), st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=60)
def test_a_shorter_set_is_the_beginning_of_a_longer_one(recipe: PromptRecipe, one: int, other: int) -> None:
    short, long = sorted((one, other))
    assert (
        prompts(recipe, count=short, similarity=similarity)
        == prompts(recipe, count=long, similarity=similarity)[:short]
    )


@given(recipes())
@settings(max_examples=60)
def test_no_class_meets_itself_and_passes_are_balanced(recipe: PromptRecipe) -> None:
    classes = len(recipe.class_names)
    together = recipe.classes_per_prompt if recipe.strategy == "mixup" else 1
    made = prompts(recipe, count=3 * classes, similarity=similarity)
    assert all(len(set(prompt.classes)) == len(prompt.classes) == together for prompt in made)
    assert len({prompt.seed for prompt in made}) == len(made)
    if recipe.pairing == "balanced" or recipe.strategy != "mixup":
        for start in range(0, len(made), classes):
            uses = Counter(one for prompt in made[start : start + classes] for one in prompt.classes)
            assert uses == dict.fromkeys(range(classes), together)


@given(st.integers(1, 99), SHARES, SHARES)
def test_the_pool_is_the_smallest_that_leaves_enough(images: int, energy: float, statistics: float) -> None:
    drawn = pool_size(FilterSettings(keep_energy=energy, keep_statistics=statistics), images=images)
    survivors = pool_size(FilterSettings(keep_statistics=statistics), images=images)
    slack = 1e-9 * drawn
    assert images - slack <= survivors * statistics < images + statistics + slack
    assert survivors - slack <= drawn * energy < survivors + energy + slack


class Scores:
    """Scores from the first pixel; the statistics are refused for an image of high energy."""

    def energy(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        return images[:, 0, 0, 0].astype(np.float64)

    def statistics(
        self, images: NDArray[np.uint8], *, chosen: Sequence[int] | None = None
    ) -> tuple[NDArray[np.float64], str]:
        scored = images if chosen is None else images[list(chosen)]
        return scored[:, 0, 0, 1].astype(np.float64), "second channel"


@given(
    st.integers(1, 40),
    SHARES.filter(lambda share: share >= 0.1),
    SHARES.filter(lambda share: share >= 0.1),
    st.integers(0, 99),
)
@settings(max_examples=60)
def test_exactly_the_images_asked_for_remain(
    images: int, energy: float, statistics: float, seed: int
) -> None:
    filters = FilterSettings(keep_energy=energy, keep_statistics=statistics)
    drawn = pool_size(filters, images=images)
    pool = np.random.default_rng(seed).integers(0, 8, (drawn, 1, 1, 3), np.uint8)
    kept, record = filter_images(pool, filters=filters, images=images, scores=Scores())
    assert len(set(kept)) == images and list(kept) == sorted(kept)
    assert record.drawn - record.dropped_by_energy - record.dropped_by_statistics == record.asked == images
    scores = Scores()
    pure = keep(
        filters,
        images=images,
        energy=scores.energy(pool) if energy < 1.0 else None,
        statistics=scores.statistics(pool)[0] if statistics < 1.0 else None,
        statistic="second channel",
    )
    assert pure == (kept, record)
    if energy < 1.0:
        survivors = np.argsort(scores.energy(pool), kind="stable")[: drawn - record.dropped_by_energy]
        assert set(kept) <= set(survivors.tolist())
