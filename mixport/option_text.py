"""How the value of an option is typed, and read back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

#: Options of two sides, typed HEIGHTxWIDTH; other tuples of numbers are typed with commas.
_SIZES = ("input_size", "gen_size")
#: Options that may be typed several times.
_REPEATED = ("target", "gate", "runtime")


def flag(name: str) -> str:
    """The option as it is typed: input_size -> --input-size."""
    return f"--{name.replace('_', '-')}"


def spell(name: str, value: object) -> list[str]:
    """The words that give an option a value that is not its default."""
    match value:
        case True:
            return [flag(name)]
        case False:
            return [flag(f"no_{name}")]
        case dict():
            pairs = cast("dict[str, str]", value)
            return [word for key, item in pairs.items() for word in (flag(name), f"{key}={item}")]
        case tuple() if name in _REPEATED:
            return [word for item in cast("tuple[str, ...]", value) for word in (flag(name), item)]
        case tuple():
            separator = "x" if name in _SIZES else ","
            return [flag(name), separator.join(map(str, cast("tuple[object, ...]", value)))]
        case _:
            return [flag(name), str(value)]


def read_size(value: object) -> object:
    """One side, or HEIGHTxWIDTH, as (height, width); what is neither is left for the check to refuse."""
    if isinstance(value, int):
        return (value, value)
    if isinstance(value, str):
        sides = value.lower().split("x")
        return tuple(sides) if len(sides) == 2 else (value, value)
    return value


def check_size(value: tuple[int, int] | None) -> tuple[int, int] | None:
    """The size itself. Raises ValueError below one pixel."""
    if value is not None and min(value) < 1:
        raise ValueError("sides are in pixels, 1 or more")
    return value


def read_triple(value: object) -> object:
    """R,G,B as three texts; what is no text stays."""
    return tuple(value.split(",")) if isinstance(value, str) else value


def read_pairs(value: object) -> object:
    """KEY=VALUE once or several times, or a mapping, as a mapping of texts. Raises ValueError."""
    if isinstance(value, str):
        value = (value,)
    if isinstance(value, Mapping):
        return {str(key): str(item) for key, item in cast("Mapping[object, object]", value).items()}
    if isinstance(value, Iterable):
        return dict(_split_pair(str(item)) for item in cast("Iterable[object]", value))
    return value


def _split_pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ValueError("allowed KEY=VALUE")
    return key, value
