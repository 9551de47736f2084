"""What was done or declined and why, and what is worth a look."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Something done, or declined, on one node, and why. Ends in the report."""

    where: str
    what: str
    why: str


@dataclass(frozen=True, kw_only=True)
class BuildWarning:
    """Something about a build that is worth a look, though no gate asks for it.

    Attributes:
        about: what it is about, in a word or two: output, weights, calibration images.
        message: what was seen, with figures.
        hint: what to type or change.
    """

    about: str
    message: str
    hint: str

    def text(self) -> str:
        """One line for people."""
        return f"warning: {self.about}: {self.message}; hint: {self.hint}"
