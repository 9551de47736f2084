"""Float functions between codes: what they compute, and when every runtime is proved to round them alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixport.arithmetic import integer
from mixport.arithmetic.float_functions import FLOAT_FUNCTIONS, proved_codes
from mixport.arithmetic.quant_params import QuantParams

F = torch.nn.functional
REFERENCES = {
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Gelu": F.gelu,
    "Gelu/tanh": lambda x: F.gelu(x, approximate="tanh"),
    "HardSigmoid": F.hardsigmoid,
    "HardSwish": F.hardswish,
    "LeakyRelu": lambda x: F.leaky_relu(x, 1.0),
}


def params(scale: float, zero_point: int) -> QuantParams:
    return QuantParams(
        scale=float(np.float32(scale)), zero_point=zero_point, qmin=0, qmax=255, storage="uint8"
    )


def test_every_function_has_a_reference() -> None:
    assert REFERENCES.keys() == FLOAT_FUNCTIONS.keys()


@pytest.mark.parametrize("key", FLOAT_FUNCTIONS)
def test_float64_values_are_far_closer_than_the_bound(key: str) -> None:
    x = np.concatenate([np.linspace(-20, 20, 4001), [0.0, -0.0, 1e-30, -1e-30]])
    function = FLOAT_FUNCTIONS[key]
    y = function.evaluate(x)
    reference = REFERENCES[key](torch.as_tensor(x)).numpy()
    # torch's 1/6 is a double, the operator's a float32: both are within an eighth of the bound.
    assert (np.abs(y - reference) <= function.error(x, reference) / 8).all()


def test_a_result_on_the_boundary_of_two_codes_is_no_proof() -> None:
    source = params(0.0371, 117)  # code 117 is 0, and sigmoid(0) / (1 / 255) is 127.5
    assert proved_codes(FLOAT_FUNCTIONS["Sigmoid"], source, params(1 / 255, 0)) is None
    codes = proved_codes(FLOAT_FUNCTIONS["Sigmoid"], source, params(1 / 256, 0))
    assert codes is not None
    assert (codes[117], codes[0], codes[255]) == (128, 3, 254)


def test_results_beyond_the_range_saturate_whatever_their_error() -> None:
    codes = proved_codes(FLOAT_FUNCTIONS["Exp"], params(1.0, 0), params(2.0**-8, 0))
    assert codes is not None
    assert set(codes.tolist()) == {255}


@settings(max_examples=60, deadline=None)
@given(
    key=st.sampled_from(sorted(FLOAT_FUNCTIONS)),
    in_scale=st.floats(1e-4, 0.3),
    in_zero=st.integers(0, 255),
    scale=st.floats(1e-3, 0.1),
    zero=st.integers(0, 255),
)
def test_proved_codes_are_those_of_float32_and_of_float64(
    key: str, in_scale: float, in_zero: int, scale: float, zero: int
) -> None:
    source, target = params(in_scale, in_zero), params(scale, zero)
    codes = proved_codes(FLOAT_FUNCTIONS[key], source, target)
    if codes is None:
        return
    x = (torch.arange(256) - in_zero).float() * np.float32(in_scale)
    for values in (REFERENCES[key](x), REFERENCES[key](x.double()).float()):
        expected = integer.quantise(values.numpy(), scale=target.scale, zero_point=zero, qmin=0, qmax=255)
        np.testing.assert_array_equal(codes, expected)
