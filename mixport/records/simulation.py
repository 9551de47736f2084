"""What the validator needs of the quantiser's simulation: codes of every site, and float operators evaluated
independently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class FloatEvaluation:
    """What the float operators in front of a site, or of the output, give for the codes they read.

    Attributes:
        values: codes of the site as this executor rounds them (float64, NaN where the value is not finite in
            both precisions), or the float output.
        error: how far evaluation in float32 and in float64 lie apart at most, in codes or, for the output, in
            real units. It measures how much float rounding the operators amplify; 0 where they are exact.
    """

    values: NDArray[np.float64]
    error: float


@dataclass(frozen=True, kw_only=True)
class SimulatedRun:
    """One run of the simulation.

    Attributes:
        codes: of every activation site by name, and the float output under `output`.
        floats: float operators by the name of the site that quantises their result, or `output`.
    """

    codes: Mapping[str, NDArray[Any]]
    floats: Mapping[str, FloatEvaluation]


class Simulation(Protocol):
    """The quantiser's own executable view of the model."""

    def simulate(self, images: NDArray[np.float32], *, overrides: Mapping[str, NDArray[Any]]) -> SimulatedRun:
        """Run the hardware-exact simulation.

        Args:
            images: float32 [N, C, H, W], preprocessed.
            overrides: codes to use in place of the simulation's own at these sites (those behind float
                islands).
        """
        ...
