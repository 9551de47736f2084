"""From labels to the text of a prompt: articles, adjectives, conjunctions, and the template around them."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from mixport.records.errors import BadOptionError

#: GenQ (arXiv 2312.05272) puts an adjective of CLIP's 80 ImageNet templates before the class name. These are
#: the adjectives of the
#: templates that can be said of a thing; those said of a picture (blurry, cropped, jpeg corrupted, ...) and
#: nouns (toy, origami,
#: ...) are left out. The order is part of every genq set.
ADJECTIVES = (
    "bad",
    "bright",
    "clean",
    "cool",
    "dark",
    "dirty",
    "embroidered",
    "good",
    "hard to see",
    "large",
    "nice",
    "plastic",
    "small",
    "weird",
)

DEFAULT_TEMPLATE = "A photo of {classes}"

_FIELD = "classes"
_HINT = f"--template '{DEFAULT_TEMPLATE}'"
_ENDS_WITH_ARTICLE = re.compile(r"(?:^|\s)(an?|the)\s+$", re.IGNORECASE)
# The letter decides, but for the words whose first sound is another one: an hour, a European, a unicycle.
_SILENT_H = re.compile(r"heir|hon(?:est|ou?r)|hour", re.IGNORECASE)
_SPOKEN_CONSONANT = re.compile(r"eu|ewe|one\b|u-|uk|uni(?![mn])|us[aeu]|ut[ei]", re.IGNORECASE)


def with_article(words: str) -> str:
    """`cat` -> `a cat`, `airplane` -> `an airplane`, `hourglass` -> `an hourglass`.

    Decided by the first word, by its letter and a short list of exceptions in sound. Plurals and names of
    substances get an article too: a label does not tell them apart.
    """
    if _SILENT_H.match(words):
        return f"an {words}"
    vowel = words[:1].casefold() in set("aeiou") and not _SPOKEN_CONSONANT.match(words)
    return f"{'an' if vowel else 'a'} {words}"


def join(phrases: Sequence[str]) -> str:
    """`a cat`, `a cat and a dog`, `a cat, a dog and an airplane`."""
    if len(phrases) == 1:
        return phrases[0]
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def fill(template: str, *, labels: Sequence[str], adjective: str | None = None) -> str:
    """The text of a prompt.

    `{classes}` becomes the labels with their articles, and the adjective stands between the article and the
    label: `a cat and a dog`, `a small cat`. GenQ and CLIP write `a` before every word; here it is `an
    airplane`.

    Args:
        template: checked by `check_template`.
        labels: one or more.
        adjective: before each label, None for none.
    """
    spoken = labels if adjective is None else [f"{adjective} {label}" for label in labels]
    return template.format(classes=join([with_article(words) for words in spoken]))


def check_template(template: str) -> str:
    """The template itself, where it is usable.

    Raises:
        BadOptionError: not exactly one plain `{classes}` field, or an article in front of it.
    """
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise BadOptionError(
            f"template {template!r} cannot be read: {error}; allowed text with one {{classes}}", hint=_HINT
        ) from error
    fields = [(name, spec, conversion) for _, name, spec, conversion in pieces if name is not None]
    if fields != [(_FIELD, "", None)]:
        found = ", ".join(_spelling(*field) for field in fields) or "none"
        raise BadOptionError(
            f"template {template!r} has the fields {found}, allowed exactly one, {{classes}}", hint=_HINT
        )
    # Up to the field the text is one piece unless it holds doubled braces, which end no article.
    before = next(literal for literal, name, _, _ in pieces if name is not None)
    article = _ENDS_WITH_ARTICLE.search(before)
    if article is not None:
        raise BadOptionError(
            (
                f"template {template!r} has the article {article[1]!r} before {{classes}}, which brings "
                "its own ('a cat and a dog')"
            ),
            hint=_HINT,
        )
    return template


def _spelling(name: str, spec: str | None, conversion: str | None) -> str:
    return "{" + name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "") + "}"
