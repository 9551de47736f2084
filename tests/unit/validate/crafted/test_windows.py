"""Windows in their places: one output position reads exactly the window, and no padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mixport.arithmetic import integer
from mixport.validate.crafted.windows import layout_of, place
from mixport.validate.interpreter.fused_units import FusedUnit
from mixport.validate.interpreter.interpreter import Interpreter
from tests.unit.validate.qdq_graphs import QdqBuilder


def conv_unit(*, channels: int = 6, outputs: int = 12, kernel: int = 3, **options: Any) -> FusedUnit:
    b = QdqBuilder(shape=("N", channels, 32, 32))
    b.quantise("input", "x", 0.5, 40, clip=(30, 60))
    shape = (outputs, channels // options.get("group", 1), kernel, kernel)
    w = b.weight(b.rng.integers(-7, 8, shape), np.full(outputs, 0.5, np.float32))
    conv = b.node("Conv", [b.dequantise("x"), w], **options)
    return Interpreter(b.build(b.qdq(conv, "y", 2.0, 128))).units[0]


def test_without_padding_the_window_starts_at_the_edge() -> None:
    layout = layout_of(conv_unit())
    assert (layout.groups, layout.channels, layout.kernel) == (1, 6, (3, 3))
    # Three positions of margin on each axis.
    assert (layout.starts, layout.sizes) == ((0, 0), (6, 6))


@pytest.mark.parametrize(
    ("options", "starts", "sizes"),
    [
        ({"pads": [1, 1, 1, 1]}, (0, 0), (6, 6)),
        ({"pads": [2, 0, 0, 0]}, (0, 0), (6, 6)),
        # A stride of 2 and a pad of 1: position 1 reads from 1 on.
        ({"pads": [1, 1, 1, 1], "strides": [2, 2]}, (1, 1), (10, 10)),
        ({"pads": [0, 2, 1, 0], "strides": [2, 3]}, (0, 1), (9, 13)),
        ({"dilations": [3, 2]}, (0, 0), (10, 8)),
    ],
    ids=str,
)
def test_starts_are_the_first_places_free_of_padding(
    options: dict[str, Any], starts: tuple[int, ...], sizes: tuple[int, ...]
) -> None:
    layout = layout_of(conv_unit(**options))
    assert (layout.starts, layout.sizes) == (starts, sizes)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pads": [1, 1, 1, 1]},
        {"pads": [3, 1, 0, 2], "strides": [2, 3], "dilations": [3, 2]},
        {"group": 2},
        {"group": 6},
    ],
    ids=str,
)
def test_the_sum_at_the_place_is_that_of_the_window(options: dict[str, Any]) -> None:
    unit = conv_unit(**options)
    assert unit.weight is not None
    layout = layout_of(unit)
    rng = np.random.default_rng(5)
    windows = rng.integers(30, 61, (4, layout.groups, layout.channels * 9))
    x = place(windows, layout, unit.inputs[0], rng)
    assert x.dtype == np.uint8 and x.shape == (4, 6, *layout.sizes)
    assert x.min() >= 30 and x.max() <= 60
    pads, strides = options.get("pads", [0] * 4), options.get("strides", [1, 1])
    acc = integer.conv_accumulate(
        x,
        unit.weight,
        x_zero_point=40,
        strides=tuple(strides),
        pads=tuple(pads),
        dilations=tuple(options.get("dilations", [1, 1])),
        groups=layout.groups,
    )
    place_of = [-(-pads[axis] // strides[axis]) for axis in range(2)]
    weights = unit.weight.reshape(layout.groups, 12 // layout.groups, -1)
    expected = np.einsum("tgk,gok->tgo", windows - 40, weights).reshape(4, 12)
    np.testing.assert_array_equal(acc[:, :, place_of[0], place_of[1]], expected)


def test_codes_around_the_window_follow_the_seed() -> None:
    unit = conv_unit()
    layout = layout_of(unit)
    windows = np.full((2, 1, 54), 33)
    first, again, other = (
        place(windows, layout, unit.inputs[0], np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and (first.min(), first.max()) == (30, 60)
    assert (first[:, :, :3, :3] == 33).all() and (first != 33).any()


def test_rows_of_a_product_need_no_place() -> None:
    b = QdqBuilder()
    flat = b.node("Flatten", [b.quantise("input", "x", 0.03, 128)])
    b.quantisation[flat] = b.quantisation["x"]
    unit = Interpreter(b.build(b.layer("Gemm", flat, (5, 192), name="gemm"))).units[0]
    layout = layout_of(unit)
    assert (layout.kernel, layout.starts, layout.sizes, layout.most_windows) == ((), (), (), 256)
    rows = np.arange(384).reshape(2, 1, 192) % 256
    placed = place(rows, layout, unit.inputs[0], np.random.default_rng(0))
    np.testing.assert_array_equal(placed, rows.reshape(2, 192).astype(np.uint8))


def test_dear_layers_get_fewer_windows_and_no_margin() -> None:
    cheap = layout_of(conv_unit(channels=64, outputs=64, group=64, kernel=5))
    assert (cheap.sizes, cheap.most_windows) == ((8, 8), 128)
    dear = layout_of(conv_unit(channels=256, outputs=256, kernel=3))
    assert (dear.sizes, dear.most_windows) == ((3, 3), 256)
