"""How an option is shown to people. The command line is made from it: an option is declared once, with its
type and default, as a field of `BuildOptions` or `DrawOptions`.
"""

from __future__ import annotations

from dataclasses import dataclass

MODEL, QUANTISATION, IMAGES, PROMPTS = "Model", "Quantisation", "Calibration images", "Prompts"
GENERATOR, FILTERS = "Generator", "Filters of drawn images"
PROOF, FILES = "Validation and gates", "Files"
METHOD, LOOP = "Method and data", "Training"

PANELS = (MODEL, METHOD, LOOP, QUANTISATION, IMAGES, PROMPTS, GENERATOR, FILTERS, PROOF, FILES)
"""Groups of options, in the order in which help shows them."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Of one option.

    Attributes:
        help: what it does.
        panel: one of `PANELS`.
        metavar: stands for its value; None for switches, and where the allowed words say all.
        default: what holds where it is not typed; None where that is the field's default itself.
        both: a switch that can be turned off, too: --NAME/--no-NAME.
        argument: the command's argument, and no option.
    """

    help: str
    panel: str
    metavar: str | None = None
    default: str | None = None
    both: bool = False
    argument: bool = False
