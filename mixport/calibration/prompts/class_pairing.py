"""Which classes stand in prompt i: decided by seed and i alone, so that a shorter set is the beginning of a
longer one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count

import numpy as np
from numpy.typing import NDArray

from mixport.calibration.prompts.keyed_random import Stream, below, distinct, words

Similarity = NDArray[np.float32]
"""Cosine of the text embeddings of every two classes, [C, C]."""


def balanced(*, classes: int, together: int, seed: int) -> Iterator[tuple[int, ...]]:
    """Endless choices in passes of C prompts; in each pass every class stands in every position once.

    A pass is one random permutation p of the classes and different random shifts 0 = s0, s1, ...; prompt j
    has the classes p[(j + s) mod C]. Each position runs through a permutation, shifts differ, so no class
    meets itself, and since p is uniform, every ordered choice of classes is equally likely in prompt j.

    Args:
        classes: C.
        together: classes a prompt, at most C; 1 gives each class once a pass, in random order.
        seed: of the permutations and shifts.
    """
    for turn in count():
        random = words(seed, stream=Stream.ORDER, index=turn, count=classes + together - 1)
        order = sorted(range(classes), key=random[:classes].__getitem__)
        shifts = (0, *(1 + value for value in distinct(random[classes:], classes - 1)))
        for place in range(classes):
            yield tuple(order[(place + shift) % classes] for shift in shifts)


def uniform(*, classes: int, together: int, seed: int) -> Iterator[tuple[int, ...]]:
    """Endless independent choices, every set of `together` classes equally likely, in random order."""
    for index in count():
        yield distinct(words(seed, stream=Stream.CHOICE, index=index, count=together), classes)


def far(*, similarity: Similarity, together: int, seed: int) -> Iterator[tuple[int, ...]]:
    """Endless choices of classes whose names mean different things.

    The first class is balanced as in `balanced`. Each following one is drawn among the half (rounded up) of
    the other classes that is least similar to those chosen before, by the nearest of them; partners are
    therefore not equally frequent.

    Args:
        similarity: [C, C].
        together: classes a prompt, at most C.
        seed: of the choices.
    """
    firsts = balanced(classes=len(similarity), together=1, seed=seed)
    for index, chosen in enumerate(firsts):
        picked = list(chosen)
        for word in words(seed, stream=Stream.CHOICE, index=index, count=together - 1):
            nearest = similarity[picked].max(axis=0)
            others = [int(other) for other in np.argsort(nearest, kind="stable") if int(other) not in picked]
            picked.append(others[below(word, math.ceil(len(others) / 2))])
        yield tuple(picked)
