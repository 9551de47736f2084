"""What a reconstruction of rounding does, as data: presets with the names and numbers of their publications, and our own default."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from mixport.errors import BadOptionError

Grain = Literal["layer", "block"]
"""Size of a unit: as fine as the graph allows, or a block."""
Method = Literal["sigmoid", "free"]
"""What is learned of the codes: up or down (AdaRound), or any code."""
WIDEST_LEARNED = 7
"""8-bit weights and activations are rounded to nearest: their error is small, and the pair bound holds their codes."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Parts and hyperparameters of one reconstruction.

    Attributes:
        name: on the command line.
        title: one line for people.
        grain: size of a unit.
        rounding: what is learned of the codes.
        rounding_lr: Adam's: of rounding logits (sigmoid), or of weights in units of their scale (free), falling to 0 on a cosine.
        scale_lr: of weight scales relative to their first value, falling to 0 on a cosine; 0 leaves them.
        step_lr: of activation steps relative to their calibrated value, falling to 0 on a cosine; 0 leaves them.
        bias_lr: of biases, in units of one activation step through the norm of the channel's weights, falling; 0 leaves them.
        input_drop: probability of the float value in the unit's input, element by element (QDrop).
        inner_drop: probability of the float value behind each learned quantiser inside (QDrop).
        rounding_weight: of the rounding regulariser (sigmoid).
        warmup: fraction of the steps without it.
        damping: of free codes: weight of what keeps them from the brink between two codes, next to the relative error of the output,
            growing from 0 to this over the steps.
        mirrored: images are learned from as they are and mirrored left to right.
        batch: images a step.
    """

    name: str
    title: str
    grain: Grain = "block"
    rounding: Method = "sigmoid"
    rounding_lr: float = 1e-3
    scale_lr: float = 0.0
    step_lr: float = 0.0
    bias_lr: float = 0.0
    input_drop: float = 0.0
    inner_drop: float = 0.0
    rounding_weight: float = 0.01
    warmup: float = 0.2
    damping: float = 0.0
    mirrored: bool = False
    batch: int = 32


DEFAULT = "mixport"

PRESETS = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            Preset(
                name=DEFAULT,
                title="codes, scales, activation steps and biases learned together; our measurements favour it",
                rounding="free",
                rounding_lr=1e-2,
                scale_lr=2e-3,
                step_lr=2e-3,
                bias_lr=5e-3,
                input_drop=0.25,
                inner_drop=0.25,
                damping=0.2,
                mirrored=True,
            ),
        )
    }
)


def find_preset(name: str) -> Preset:
    """The preset of this name. Raises BadOptionError."""
    if name not in PRESETS:
        raise BadOptionError(f"--reconstruction is {name!r}, allowed {', '.join(PRESETS)}", hint="mixport build --help")
    return PRESETS[name]


@dataclass(frozen=True, kw_only=True)
class ReconstructionOptions:
    """How rounding is learned.

    Attributes:
        preset: the recipe.
        iters: steps a unit, at least 1.
        seed: of batches and masks.
        device: cpu or cuda.
        threads: of the CPU; what is learned depends on their number in the last places. None where nobody asked.
    """

    preset: Preset
    iters: int
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None
