from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mixport.records.graph_facts import LayerFacts, OutputCodes

MakeLayer = Callable[..., LayerFacts]


@pytest.fixture
def layer() -> MakeLayer:
    """A layer of 8-bit codes with scales of few bits, in which everything can be set."""

    def make(weights: Any = None, **changes: Any) -> LayerFacts:
        array = None if weights is None else np.asarray(weights, np.int64)
        fields: dict[str, Any] = {
            "site": "s",
            "node": "s.node",
            "op": "Conv",
            "weights": array,
            "bias": None,
            "left": (0, 255, 0),
            "right": None,
            "products": 1 if array is None else int(np.prod(array.shape[1:])),
            "groups": 1,
            "x_scale": 0.5,
            "w_scale": np.ones(1 if array is None else len(array), np.float32),
            "y": OutputCodes(scale=64.0, zero_point=3, low=0, high=255),
        }
        return LayerFacts(**{**fields, **changes})

    return make
