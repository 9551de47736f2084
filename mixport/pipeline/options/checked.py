"""Options of a command checked as a whole: names, values, and what contradicts itself."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Protocol, Self, TypeVar

from pydantic import BaseModel, ValidationError

from mixport.pipeline.options.spelling import flag
from mixport.records.errors import BadOptionError

Options = TypeVar("Options", bound=BaseModel)


class Checked(Protocol):
    """An options record of one command."""

    @classmethod
    def of(cls, values: Mapping[str, object]) -> Self:
        """Check values and fill defaults."""
        ...


def read_options(kind: type[Options], values: Mapping[str, object], *, command: str) -> Options:
    """The record of these values. Raises BadOptionError that names the option, what it got and what is
    allowed.
    """
    check_names(kind, values, where="", command=command)
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        name = flag(str(first["loc"][0])) if first["loc"] else "options"
        got = f", got {first['input']!r}" if "input" in first else ""
        reason = str(first["msg"]).removeprefix("Value error, ")
        raise BadOptionError(
            f"{name}: {reason[:1].lower()}{reason[1:]}{got}", hint=f"mixport {command} --help"
        ) from error


def check_names(kind: type[BaseModel], values: Iterable[str], *, where: str, command: str) -> None:
    """Raise BadOptionError for the first name that is no option of the command, with the nearest one that
    is.
    """
    known = [*kind.model_fields]
    for name in values:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        raise BadOptionError(
            f"{where}unknown option {name!r}, allowed: {', '.join(known)}",
            hint=f"did you mean {near[0]!r}?" if near else f"mixport {command} --help",
        )
