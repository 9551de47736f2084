"""The ways to choose integers, by name: what options, help and documents read. Nothing is imported before it
runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any

from mixport.records.choices.reconstruction_preset import DEFAULT, PRESETS, Preset
from mixport.records.errors import BadOptionError

_RECONSTRUCTION = "mixport.quantize.algorithms.reconstruction:choose_by_reconstruction"
NEAREST = "nearest"


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """One way to choose.

    Attributes:
        name: on the command line.
        title: one line for people.
        entry: `package.module:function` of a `mixport.quantize.algorithms.context.Choose`.
        preset: how it learns unit by unit; None where it does not.
    """

    name: str
    title: str
    entry: str
    preset: Preset | None = None

    def load(self) -> Callable[..., Any]:
        """The function itself; imports its module."""
        module, _, function = self.entry.partition(":")
        return getattr(import_module(module), function)


ALGORITHMS: Mapping[str, Algorithm] = MappingProxyType(
    {
        NEAREST: Algorithm(
            name=NEAREST,
            title="rounding to nearest: nothing is learned",
            entry="mixport.quantize.algorithms.nearest:choose_nearest",
        ),
        **{
            preset.name: Algorithm(
                name=preset.name,
                title=preset.title,
                entry=_RECONSTRUCTION,
                preset=preset,
            )
            for preset in PRESETS.values()
        },
    }
)
"""Every algorithm by name. A new one is a module with a `Choose`, and an entry here."""

DEFAULT_ALGORITHM = DEFAULT


def find_algorithm(name: str) -> Algorithm:
    """The algorithm of this name. Raises BadOptionError."""
    if name not in ALGORITHMS:
        raise BadOptionError(
            f"--reconstruction is {name!r}, allowed {', '.join(ALGORITHMS)}", hint="mixport build --help"
        )
    return ALGORITHMS[name]
