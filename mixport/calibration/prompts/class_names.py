"""Class names as a list of labels that prompts can use, or an error that names the offender."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mixport.records.errors import BadOptionError

_HINT = 'mixport build --classes FILE.json with one name a class: ["cat", "dog"]'
_GLOSS_HINT = (
    '--classes FILE.json with [{"name": "crane", "gloss": "a large wading bird"}, ...], or --label-text name'
)


def check_class_names(names: Sequence[str], *, glosses: Sequence[str] | None = None) -> tuple[str, ...]:
    """Check a list of classes and give the text of each one in a prompt.

    Underscores become spaces. A list of WordNet lemmas (`tench, Tinca tinca`) gives its first lemma; where
    two classes share it, the next lemma of those that have one. With glosses a label is `kite (a bird of
    prey)`: two classes may then share their name.

    Args:
        names: in index order.
        glosses: a short meaning a class, None to leave them out.

    Returns:
        one label a class, all different even without case.

    Raises:
        BadOptionError: no names, a blank one, two that read the same, or glosses that do not fit the names.
    """
    if not names:
        raise BadOptionError("the list of class names is empty, allowed 1 or more", hint=_HINT)
    lemmas = [_lemmas(name) for name in names]
    for index, (name, spoken) in enumerate(zip(names, lemmas, strict=True)):
        if not _is_text(name) or not all(map(_is_text, (glosses or ())[index : index + 1])):
            raise BadOptionError(f"class {index} has the name {name!r}, which is no Unicode text", hint=_HINT)
        if not spoken:
            raise BadOptionError(
                f"class {index} has the name {name!r}, allowed a name with at least one letter or digit",
                hint=_HINT,
            )
    if glosses is None:
        labels = _distinct_lemmas(lemmas)
    else:
        labels = [
            f"{spoken[0]} ({gloss})" for spoken, gloss in zip(lemmas, _glosses(names, glosses), strict=True)
        ]
    _refuse_duplicates(labels, names=names)
    return tuple(labels)


def _lemmas(name: str) -> list[str]:
    spoken = (" ".join(lemma.replace("_", " ").split()) for lemma in name.split(","))
    return [lemma for lemma in spoken if any(character.isalnum() for character in lemma)]


def _is_text(text: str) -> bool:
    """JSON can spell halves of surrogate pairs, which no tokenizer and no terminal takes."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _distinct_lemmas(lemmas: Sequence[Sequence[str]]) -> list[str]:
    place = [0] * len(lemmas)
    while True:
        labels = [spoken[position] for spoken, position in zip(lemmas, place, strict=True)]
        uses = Counter(label.casefold() for label in labels)
        moving = [
            i
            for i, label in enumerate(labels)
            if uses[label.casefold()] > 1 and place[i] + 1 < len(lemmas[i])
        ]
        if not moving:
            return labels
        for index in moving:
            place[index] += 1


def _glosses(names: Sequence[str], glosses: Sequence[str]) -> list[str]:
    if len(glosses) != len(names):
        raise BadOptionError(
            f"{len(glosses)} glosses for {len(names)} classes, allowed one a class", hint=_GLOSS_HINT
        )
    cleaned = [" ".join(gloss.split()) for gloss in glosses]
    for index, gloss in enumerate(cleaned):
        if not gloss:
            raise BadOptionError(
                f"class {index} ({names[index]!r}) has a blank gloss, allowed a short meaning",
                hint=_GLOSS_HINT,
            )
    return cleaned


def _refuse_duplicates(labels: Sequence[str], *, names: Sequence[str]) -> None:
    first: dict[str, int] = {}
    for index, label in enumerate(labels):
        other = first.setdefault(label.casefold(), index)
        if other != index:
            raise BadOptionError(
                (
                    f"classes {other} ({names[other]!r}) and {index} ({names[index]!r}) read the same in "
                    "a prompt, allowed names that differ"
                ),
                hint="rename one in --classes FILE.json, or tell them apart with --label-text gloss",
            )
