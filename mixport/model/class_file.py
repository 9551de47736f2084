"""The file that --classes names: the classes of a model, in index order."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from mixport.records.errors import BadInputError

_HINT = 'a JSON list of names: ["cat", "dog"], or of {"name": ..., "gloss": ...}'
_MAX_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Classes:
    """Classes in index order.

    Attributes:
        names: one a class.
        glosses: a short meaning a class; None unless every class has one.
        ids: what the data set calls each class (the synsets of ImageNet); None where it has no such names.
    """

    names: tuple[str, ...]
    glosses: tuple[str, ...] | None = None
    ids: tuple[str, ...] | None = None


def read_classes(path: Path) -> Classes:
    """Read a JSON list of names, or of objects with a `name` and perhaps a `gloss`.

    Raises:
        BadInputError: missing, too large, no JSON, or another document.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise BadInputError(f"class file {path} is larger than {_MAX_BYTES} bytes", hint=_HINT)
        document: object = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInputError(f"class file {path} cannot be read: {error}", hint=_HINT) from error
    kind = type(document).__name__
    entries = cast("list[object]", document) if isinstance(document, list) else []
    glosses: list[object] = []
    if all(isinstance(entry, dict) for entry in entries):
        objects = [cast("dict[str, object]", entry) for entry in entries]
        entries, glosses = [entry.get("name") for entry in objects], [entry.get("gloss") for entry in objects]
    if document == []:
        raise BadInputError(
            f"class file {path} is empty: it holds a list without names, allowed one a class", hint=_HINT
        )
    names = tuple(entry for entry in entries if isinstance(entry, str))
    if not names or len(names) < len(entries):
        raise BadInputError(f"class file {path} holds {kind}, expected a list of names", hint=_HINT)
    meanings = tuple(gloss for gloss in glosses if isinstance(gloss, str))
    return Classes(names=names, glosses=meanings if len(meanings) == len(names) else None)
