"""Weights that a model needs and its files do not have.

diffusers and transformers fill them with whatever memory holds, or with random numbers, and go on: the images
would mean nothing and differ from run to run. Neither raises, and a pipeline's loading gives no report; both
say it in a warning, which is read here.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Generator

_LOGGERS = ("diffusers.models.modeling_utils", "transformers.modeling_utils")
_DIFFUSERS = re.compile(
    r"weights of (\w+) were not initialized from the model checkpoint.*newly initialized: \[(.*?)\]",
    re.DOTALL,
)
_TRANSFORMERS = re.compile(r"^(\S+)\s*\|\s*MISSING\b", re.MULTILINE)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_QUOTED = re.compile(r"'([^']+)'")
_MOST_NAMES = 3


class _Reader(logging.Handler):
    """Remembers what a loading said of missing weights, one line a model."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        # On a terminal the report is in colours.
        text = _COLOUR.sub("", record.getMessage())
        if match := _DIFFUSERS.search(text):
            self.found.append(f"{match[1]}: {_some(_QUOTED.findall(match[2]))}")
        elif names := _TRANSFORMERS.findall(text):
            self.found.append(_some(names))


@contextlib.contextmanager
def watch_missing_weights() -> Generator[list[str]]:
    """A list that holds, at the end of the block, a line for each model that was loaded in it without all of
    its weights.

    What the libraries would have said goes nowhere else; their loggers are as before afterwards.
    """
    reader = _Reader()
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(reader)
        logger.setLevel(logging.WARNING)
        logger.propagate = False
    try:
        yield reader.found
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(reader)
            logger.setLevel(level)
            logger.propagate = propagate


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"{', '.join(sorted(names)[:_MOST_NAMES])}{more}"
