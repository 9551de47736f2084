"""How the value of an option is typed, and read back."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import cast

#: Options of two sides, typed HEIGHTxWIDTH; other tuples of numbers are typed with commas.
_SIZES = ("input_size", "gen_size")
#: Options that may be typed several times.
_REPEATED = ("target", "gate", "runtime")


#: Pixels in [0, 1] have a standard deviation of 0.5 at most; a model may want them smaller still, but not by
#: tens.
_LARGEST_STD = 10.0
_SIZE = re.compile(r"(\d+)(?:x(\d+))?")


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
    """One side, or HEIGHTxWIDTH, as (height, width); what is no text stays. Raises ValueError."""
    if isinstance(value, int):
        return (value, value)
    if isinstance(value, str):
        if (found := _SIZE.fullmatch(value.strip().lower())) is None:
            raise ValueError("allowed one side or HEIGHTxWIDTH in pixels, such as 224 or 224x160")
        return (found[1], found[2] or found[1])
    return value


def check_size(value: tuple[int, int] | None) -> tuple[int, int] | None:
    """The size itself. Raises ValueError below one pixel."""
    if value is not None and min(value) < 1:
        raise ValueError("sides are in pixels, 1 or more")
    return value


def read_triple(value: object) -> object:
    """R,G,B as three texts; what is no text stays."""
    return tuple(value.split(",")) if isinstance(value, str) else value


def check_mean(value: tuple[float, float, float] | None) -> tuple[float, float, float] | None:
    """The mean itself. Raises ValueError for one that is not finite, or that counts pixels from 0 to 255."""
    if value is not None:
        if not all(map(math.isfinite, value)):
            raise ValueError("allowed finite numbers")
        if max(value) > 1.0:
            raise ValueError(
                f"in units of [0, 1]: for pixels from 0 to 255 type {_scaled(value)}, and --std "
                "divided by 255 too"
            )
    return value


def check_std(value: tuple[float, float, float] | None) -> tuple[float, float, float] | None:
    """The standard deviation itself. Raises ValueError for one that is not above 0, or that counts pixels
    from 0 to 255.
    """
    if value is not None:
        if not all(math.isfinite(one) and one > 0.0 for one in value):
            raise ValueError("allowed numbers above 0: pixels are divided by them")
        if max(value) > _LARGEST_STD:
            raise ValueError(
                f"in units of [0, 1]: for pixels from 0 to 255 type {_scaled(value)}, and --mean "
                "divided by 255 too"
            )
    return value


def _scaled(value: tuple[float, float, float]) -> str:
    return ",".join(f"{one / 255:.4g}" for one in value)


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
