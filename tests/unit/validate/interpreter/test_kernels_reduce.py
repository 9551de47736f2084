"""Reductions over axes that a file gives as an input (18), as an attribute (13), or not at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mixport.validate.interpreter.graph import Node
from mixport.validate.interpreter.kernels_reduce import REDUCTIONS


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize(
    ("inputs", "attributes", "over"),
    [
        ([np.asarray([-1])], {}, (-1,)),
        ([], {"axes": (-1,)}, (-1,)),
        ([], {"axes": (0, 2)}, (0, 2)),
        ([], {}, None),
    ],
)
def test_axes(
    inputs: list[Any], attributes: dict[str, Any], over: tuple[int, ...] | None, keepdims: int
) -> None:
    x = np.random.default_rng(0).integers(0, 256, (2, 3, 4)).astype(np.uint8)
    node = Node(
        index=0,
        name="m",
        op="ReduceMax",
        inputs=("x", "axes")[: 1 + len(inputs)],
        outputs=("y",),
        attributes={**attributes, "keepdims": keepdims},
    )
    (found,) = REDUCTIONS["ReduceMax"](node, [x, *inputs])
    np.testing.assert_array_equal(found, x.max(axis=over, keepdims=bool(keepdims)))
    assert found.dtype == np.uint8
