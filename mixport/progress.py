"""How a stage reports progress without knowing who looks: the command line draws bars, libraries and tests stay silent."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """Anything that can show a bar.

    `track` opens one bar and gives a function: call it with the number of units just finished.
    """

    def track(self, description: str, *, total: int, unit: str = "images") -> AbstractContextManager[Callable[[int], None]]:
        """Open a bar of `total` units; the function it gives takes the number of units just finished."""
        ...


class SilentProgress:
    """Shows nothing."""

    @contextmanager
    def track(self, description: str, *, total: int, unit: str = "images") -> Generator[Callable[[int], None], None, None]:
        """Give a function that ignores what it is told."""
        yield lambda _: None
