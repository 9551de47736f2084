from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from mixport.calibration.prompts import class_pairing as pairing
from mixport.calibration.prompts.keyed_random import Stream, below, words


@pytest.mark.parametrize(("classes", "together"), [(10, 2), (10, 4), (4, 4), (3, 3), (2, 2), (7, 1), (1, 1)])
def test_balanced_passes(classes: int, together: int) -> None:
    choices = list(islice(pairing.balanced(classes=classes, together=together, seed=3), 5 * classes))
    for start in range(0, len(choices), classes):
        one_pass = choices[start : start + classes]
        for position in range(together):
            assert sorted(choice[position] for choice in one_pass) == list(range(classes))
    assert all(len(set(choice)) == together for choice in choices)
    if classes > 2:
        assert choices[:classes] != choices[classes : 2 * classes]


def test_balanced_pairs_are_uniform_over_many_passes() -> None:
    choices = Counter(islice(pairing.balanced(classes=5, together=2, seed=0), 5 * 4000))
    assert len(choices) == 20
    # 20,000 draws over 20 ordered pairs: 1,000 each, standard deviation about 31.
    assert max(abs(count - 1000) for count in choices.values()) < 160


def test_uniform_sets_are_uniform() -> None:
    choices = list(islice(pairing.uniform(classes=5, together=3, seed=0), 10_000))
    assert all(len(set(choice)) == 3 for choice in choices)
    sets = Counter(frozenset(choice) for choice in choices)
    assert len(sets) == 10
    assert max(abs(count - 1000) for count in sets.values()) < 160


def test_uniform_is_not_balanced() -> None:
    first_pass = list(islice(pairing.uniform(classes=10, together=2, seed=0), 10))
    assert sorted(choice[0] for choice in first_pass) != list(range(10))


def test_far_partners_come_from_the_far_half() -> None:
    place = np.arange(6, dtype=np.float32)
    similarity = -np.abs(place[:, None] - place[None, :])
    choices = list(islice(pairing.far(similarity=similarity, together=2, seed=1), 600))
    assert sorted(first for first, _ in choices[:6]) == list(range(6))
    partners = {first: {second for one, second in choices if one == first} for first in range(6)}
    # The half of five others, rounded up, is three; class 1 is at distance 1 of both 0 and 2, ties go by
    # index.
    assert partners == {0: {3, 4, 5}, 1: {3, 4, 5}, 2: {0, 4, 5}, 3: {0, 1, 5}, 4: {0, 1, 2}, 5: {0, 1, 2}}


def test_far_sets_look_at_the_nearest_of_those_chosen() -> None:
    place = np.array([0.0, 1.0, 100.0, 101.0], np.float32)
    similarity = -np.abs(place[:, None] - place[None, :])
    for first, second, third in islice(pairing.far(similarity=similarity, together=3, seed=1), 200):
        assert {first, second} & {0, 1} and {first, second} & {2, 3}
        assert third not in (first, second)
    assert all(
        len(set(choice)) == 4 for choice in islice(pairing.far(similarity=similarity, together=4, seed=1), 50)
    )


def test_far_copes_with_two_classes_and_with_equal_ones() -> None:
    equal = np.ones((2, 2), np.float32)
    assert set(islice(pairing.far(similarity=equal, together=2, seed=0), 50)) == {(0, 1), (1, 0)}


def test_words_are_the_same_for_ever() -> None:
    assert words(7, stream=Stream.CHOICE, index=3, count=2) == [18433488244966777507, 14597912321509443220]
    assert words(7, stream=Stream.CHOICE, index=3, count=9)[:2] == words(
        7, stream=Stream.CHOICE, index=3, count=2
    )
    assert words(2**63 - 1, stream=Stream.ORDER, index=2**63 - 1, count=1) != words(
        0, stream=Stream.ORDER, index=0, count=1
    )


def test_streams_and_indices_do_not_overlap() -> None:
    blocks = [words(5, stream=stream, index=index, count=64) for stream in Stream for index in range(8)]
    assert len({word for block in blocks for word in block}) == 64 * len(blocks)


def test_below_covers_its_range() -> None:
    assert [below(word, 3) for word in (0, 2**64 // 3 + 1, 2**64 - 1)] == [0, 1, 2]
