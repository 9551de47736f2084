from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mixport.validate.conformance.forms.layers import FORMS
from mixport.validate.conformance.forms.onnx_model import Model, pack


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (4, 2, 3, 3)])
def test_packed_codes_read_back_as_written(bits: int, shape: tuple[int, ...]) -> None:
    codes = np.random.default_rng(0).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape)
    model = Model()
    model.weight(codes, np.ones(shape[0], np.float32), bits=bits)
    built = model.build({})
    tensor = built.graph.initializer[0]
    assert tensor.HasField("raw_data")
    np.testing.assert_array_equal(numpy_helper.to_array(tensor).astype(np.int64), codes)
    assert built.opset_import[0].version == (25 if bits == 2 else 21)


def test_packing_puts_the_first_code_into_the_lowest_bits() -> None:
    assert pack(np.asarray([1, -2, 0, -1, 1]), bits=2) == bytes([0b11001001, 0b00000001])
    assert pack(np.asarray([7, -8, 1]), bits=4) == bytes([0x87, 0x01])


def test_repaired_weights_keep_the_bound_only_where_kernels_form_pairs() -> None:
    """Pairs (0, 1), (2, 3) ... channels last are within 255 * 128, some pairs (1, 2), (3, 4) ... are not:
    else the case shows nothing.
    """
    form = next(form for form in FORMS if form.name == "conv.w8")
    case = next(case for case in form.make(np.random.default_rng(0)) if case.name == "repaired-plain")
    graph = onnx.ModelProto.FromString(case.model).graph
    weight = next(array for array in map(numpy_helper.to_array, graph.initializer) if array.ndim == 4).astype(
        int
    )
    rows = np.moveaxis(weight, 1, -1).reshape(len(weight), -1)
    same_sign = np.sign(rows[:, :-1]) == np.sign(rows[:, 1:])
    sums = np.where(same_sign, np.abs(rows[:, :-1] + rows[:, 1:]), 0)
    assert sums[:, 0::2].max() == 128
    assert sums[:, 1::2].max() > 200
