"""How a stage reports progress without knowing who looks: the command line draws bars, libraries and tests
stay silent.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Moves a bar on."""

    def __call__(self, count: int, detail: str = "") -> None:
        """Say how many units were just finished, and in a few words what is under way; no words keep the last
        ones.
        """
        ...


class Progress(Protocol):
    """Anything that can show a bar.

    `track` opens one bar and gives a function: call it with the number of units just finished.
    """

    def track(self, description: str, *, total: int, unit: str = "images") -> AbstractContextManager[Advance]:
        """Open a bar of `total` units; the function it gives takes the number of units just finished."""
        ...


class SilentProgress:
    """Shows nothing."""

    @contextmanager
    def track(self, description: str, *, total: int, unit: str = "images") -> Generator[Advance]:
        """Give a function that ignores what it is told."""
        yield ignore


def ignore(count: int, detail: str = "") -> None:
    """An Advance that shows nothing."""
