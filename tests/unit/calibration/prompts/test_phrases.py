from __future__ import annotations

import pytest

from mixport.calibration.prompts.phrases import (
    ADJECTIVES,
    DEFAULT_TEMPLATE,
    check_template,
    fill,
    with_article,
)
from mixport.records.errors import BadOptionError


@pytest.mark.parametrize(
    "word",
    ["airplane", "automobile", "Egyptian cat", "umbrella", "hourglass", "honest face", "iPod", "unimportant"],
)
def test_an(word: str) -> None:
    assert with_article(word) == f"an {word}"


@pytest.mark.parametrize(
    "word",
    [
        "cat",
        "honeycomb",
        "European fire salamander",
        "unicycle",
        "one-piece suit",
        "ukulele",
        "utensil",
        "3D",
    ],
)
def test_a(word: str) -> None:
    assert with_article(word) == f"a {word}"


def test_labels_are_joined_as_in_english() -> None:
    assert fill(DEFAULT_TEMPLATE, labels=["airplane"]) == "A photo of an airplane"
    assert fill(DEFAULT_TEMPLATE, labels=["cat", "airplane"]) == "A photo of a cat and an airplane"
    assert fill(DEFAULT_TEMPLATE, labels=["cat", "dog", "ship"]) == "A photo of a cat, a dog and a ship"
    assert fill("{classes}, at night", labels=["a", "b", "c", "d"]) == "an a, a b, a c and a d, at night"


def test_the_article_is_the_adjectives() -> None:
    assert fill(DEFAULT_TEMPLATE, labels=["airplane"], adjective="small") == "A photo of a small airplane"
    assert fill(DEFAULT_TEMPLATE, labels=["cat"], adjective="embroidered") == "A photo of an embroidered cat"


def test_braces_in_a_label_are_text() -> None:
    assert (
        fill(DEFAULT_TEMPLATE, labels=["{0.__class__} {classes}"]) == "A photo of a {0.__class__} {classes}"
    )


def test_adjectives_are_different_words_in_order() -> None:
    assert sorted(set(ADJECTIVES)) == list(ADJECTIVES)


@pytest.mark.parametrize(
    "template", ["{classes}", "{{x}} of a {{y}} {classes}.", "Photo: {classes} at sea", "Santa {classes}"]
)
def test_templates_with_one_field(template: str) -> None:
    assert check_template(template) == template


@pytest.mark.parametrize(
    ("template", "found"),
    [
        ("A photo", "the fields none,"),
        ("", "the fields none,"),
        ("{classes} and {classes}", "{classes}, {classes},"),
        ("a {adjective} {classes}", "{adjective}, {classes},"),
        ("{}", "the fields {},"),
        ("{0}", "the fields {0},"),
        ("{classes.__class__}", "{classes.__class__},"),
        ("{classes[0]}", "{classes[0]},"),
        ("{classes!r}", "{classes!r},"),
        ("{classes:>9}", "{classes:>9},"),
        ("{classes:{width}}", "{classes:{width}},"),
    ],
)
def test_other_fields_are_refused_by_name(template: str, found: str) -> None:
    with pytest.raises(BadOptionError) as caught:
        check_template(template)
    assert found in str(caught.value)
    assert "{classes}" in str(caught.value.hint)


@pytest.mark.parametrize("template", ["{classes", "classes}", "{classes} }", "{classes!}"])
def test_a_template_that_cannot_be_read(template: str) -> None:
    with pytest.raises(BadOptionError, match="cannot be read"):
        check_template(template)


@pytest.mark.parametrize(
    "template", ["A photo of a {classes}", "an {classes}", "See THE  {classes}", "{{a}} the\n{classes}"]
)
def test_a_second_article_is_refused(template: str) -> None:
    with pytest.raises(BadOptionError, match="brings its own"):
        check_template(template)
