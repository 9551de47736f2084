"""An algorithm that is not mixport's: every weight gets a random code. It shows what a new one needs: this
module, and an entry in the registry.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mixport.arithmetic.dtypes import IntType
from mixport.quantize.algorithms.context import ChoiceContext
from mixport.quantize.algorithms.nearest import choose_nearest
from mixport.quantize.prepared import Assignment, Prepared


def choose(prepared: Prepared, context: ChoiceContext) -> Assignment:
    """Scales of rounding to nearest, codes from a generator with a fixed seed."""
    start, random = choose_nearest(prepared, context), np.random.default_rng(0)
    integers = {}
    for node, old in start.integers.items():
        bits = start.widths[node].bits
        # 7 bits keep every bound of pairs.
        kind = IntType(bits=min(bits, 7), signed=True)
        codes = random.integers(kind.qmin, kind.qmax + 1, old.codes.shape).astype(np.int8)
        integers[node] = replace(old, codes=codes)
    return replace(start, integers=integers)
