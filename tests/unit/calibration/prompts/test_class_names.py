from __future__ import annotations

import pytest

from mixport.calibration.prompts.class_names import check_class_names
from mixport.records.errors import BadOptionError


def test_names_become_labels() -> None:
    assert check_class_names(["tench, Tinca tinca", "great_white_shark", " hot   dog ", "iPod"]) == (
        "tench",
        "great white shark",
        "hot dog",
        "iPod",
    )


def test_classes_that_share_a_lemma_take_their_next_one() -> None:
    names = ["Cardigan, Cardigan Welsh corgi", "cardigan", "maillot", "maillot, tank suit"]
    assert check_class_names(names) == ("Cardigan Welsh corgi", "cardigan", "maillot", "tank suit")


def test_a_next_lemma_that_is_taken_too_is_passed_over() -> None:
    assert check_class_names(["a, b, c", "a", "b"]) == ("c", "a", "b")


def test_glosses_tell_equal_names_apart() -> None:
    assert check_class_names(["crane", "crane, x"], glosses=["a wading bird", " lifts  loads"]) == (
        "crane (a wading bird)",
        "crane (lifts loads)",
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "the list of class names is empty"),
        (["cat", "  "], "class 1 has the name '  '"),
        (["cat", "\ud800 dog"], "class 1 has the name .* is no Unicode text"),
        (["cat", "dog", "_,-"], "class 2 has the name '_,-'"),
        (["cat", "dog", "cat"], r"classes 0 \('cat'\) and 2 \('cat'\) read the same"),
        (["hot_dog", "cat", " Hot Dog "], r"classes 0 \('hot_dog'\) and 2 \(' Hot Dog '\) read the same"),
        (["crane, bird", "crane, bird"], "classes 0 .* and 1 .* read the same"),
    ],
)
def test_a_list_that_cannot_be_used_names_the_offender(names: list[str], message: str) -> None:
    with pytest.raises(BadOptionError, match=message) as caught:
        check_class_names(names)
    assert caught.value.hint is not None


@pytest.mark.parametrize(
    ("glosses", "message"),
    [
        (["a pet"], "1 glosses for 2 classes"),
        (["a pet", " "], r"class 1 \('dog'\) has a blank gloss"),
    ],
)
def test_glosses_that_do_not_fit(glosses: list[str], message: str) -> None:
    with pytest.raises(BadOptionError, match=message):
        check_class_names(["cat", "dog"], glosses=glosses)


def test_equal_names_with_equal_glosses_stay_an_error() -> None:
    with pytest.raises(BadOptionError, match="read the same"):
        check_class_names(["crane", "Crane"], glosses=["a bird", "A bird"])


def test_a_long_list_is_quick_even_where_names_repeat() -> None:
    assert len(check_class_names([f"thing {i // 2}, other {i}" for i in range(20_000)])) == 20_000
