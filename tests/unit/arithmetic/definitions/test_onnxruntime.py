"""ONNX Runtime's definition is mixport.arithmetic.integer's, and refuses sums that runtimes round apart."""

from __future__ import annotations

import numpy as np
import pytest

from mixport.arithmetic import integer
from mixport.arithmetic.definitions import DEFINITIONS, ONNXRUNTIME, Layer, Operand, Output

f32 = np.float32
OUTPUT = Output(scale=f32(0.25), zero_point=7, low=0, high=255)


def operand(scale: float, codes: object = 3, zero_point: int = 5) -> Operand:
    return Operand(codes=np.asarray(codes, np.uint8), scale=f32(scale), zero_point=zero_point)


def test_names_are_those_of_the_table() -> None:
    assert set(DEFINITIONS) == {"onnxruntime", "htp68", "htp73"}
    assert all(name == one.name for name, one in DEFINITIONS.items())


def test_channels_lie_along_their_axis() -> None:
    sums = np.arange(12).reshape(1, 3, 2, 2)
    scale = np.asarray([0.5, 1.0, 0.25], f32)
    layer = Layer(x_scale=f32(1.0), w_scale=scale, bias=None, axis=1)
    found = ONNXRUNTIME.layer(sums, layer, OUTPUT)
    for channel in range(3):
        multiplier = integer.conv_multiplier(1.0, scale[channel], 0.25)
        wanted = integer.requantise(sums[:, channel], multiplier=multiplier, zero_point=7, qmin=0, qmax=255)
        assert np.array_equal(found[:, channel], wanted)
    last = Layer(x_scale=f32(1.0), w_scale=scale, bias=None, axis=-1)
    assert np.array_equal(
        ONNXRUNTIME.layer(np.moveaxis(sums, 1, -1), last, OUTPUT), np.moveaxis(found, 1, -1)
    )


def test_ties_go_to_even_codes() -> None:
    """Sums 1 and 3 at half a step each are ties; HTP rounds both up."""
    layer = Layer(x_scale=f32(0.125), w_scale=np.ones(1, f32), bias=None, axis=-1)
    assert ONNXRUNTIME.layer(np.asarray([[1, 3]]), layer, OUTPUT).tolist() == [[7, 9]]
    assert DEFINITIONS["htp68"].layer(np.asarray([[1, 3]]), layer, OUTPUT).tolist() == [[8, 9]]


def test_sums_of_whole_ratios_alone() -> None:
    assert ONNXRUNTIME.add(operand(0.5), operand(0.25, 9), OUTPUT) == 2 * (3 - 5) + (9 - 5) + 7
    for a, b, which in ((0.3, 0.25, "first"), (0.25, 0.3, "second")):
        why = ONNXRUNTIME.refused_add(operand(a), operand(b), OUTPUT)
        assert f"scale 0.3 of the {which} operand is not an integer multiple" in why
        with pytest.raises(ValueError, match="not an integer multiple"):
            ONNXRUNTIME.add(operand(a), operand(b), OUTPUT)
    assert ONNXRUNTIME.refused_add(operand(0.5), operand(0.25), OUTPUT) == ""
    assert DEFINITIONS["htp73"].refused_add(operand(0.3), operand(0.25), OUTPUT) == ""


def test_rescaling_is_two_float_steps() -> None:
    codes = np.arange(256)
    found = ONNXRUNTIME.rescale(operand(0.1, codes), OUTPUT)
    real = integer.dequantise(codes.astype(np.uint8), scale=0.1, zero_point=5)
    assert np.array_equal(found, integer.quantise(real, scale=0.25, zero_point=7, qmin=0, qmax=255))
