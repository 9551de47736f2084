"""Which forms a file is made of: hand-made files, and a file that lowering wrote."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest

from mixport.validate.conformance.catalogue import FORMS, cases_of
from mixport.validate.conformance.forms.composites import layernorm_model, softmax_model
from mixport.validate.conformance.forms.onnx_model import Model
from mixport.validate.conformance.measured import exact_forms, shipped_results
from mixport.validate.conformance.used_forms import UsedForm, used_forms
from tests.benchmarks.conformance_table import DOCUMENT, updated
from tests.unit.validate.qdq_graphs import build_network, build_transformer


def unproved_forms(model: Any, **options: Any) -> tuple[UsedForm, ...]:
    """Operators of a file whose form is not exact on every runtime measured, or not in the kit."""
    exact = exact_forms(shipped_results())
    return tuple(used for used in used_forms(model, **options) if used.form not in exact)


def names(model: onnx.ModelProto, **options: tuple[int, ...]) -> Counter[str | None]:
    return Counter(used.form for used in used_forms(model, **options))


def test_a_network_of_integer_layers() -> None:
    found = names(build_network(bits=2).build("head_sum"))
    assert (
        found["conv.w2.int2"]
        == found["conv.depthwise"]
        == found["add.integer-ratio"]
        == found["global-average-pool"]
        == 1
    )
    assert found["clip.codes"] == 3
    assert None not in found


def test_a_transformer_with_islands_names_them() -> None:
    model = build_transformer().build("logits_sum")
    bad = {used.form for used in unproved_forms(model)}
    assert bad == {
        "float.softmax",
        "float.layer-normalization",
        "conv.w8.pair-saturation",
        "gemm.w8.pair-saturation",
        "gemm.float-output.pair-saturation",
    }


#: Graphs of several operators, and those that measure the bounds which proofs rest on: no operator of a file.
MEASURES = {
    "float.subnormals",
    "float.matmul.integers",
    *(form.name for form in FORMS if form.name.startswith("function-error.")),
}


@pytest.mark.parametrize("form", [form.name for form in FORMS if form.name not in MEASURES])
def test_every_graph_of_the_kit_is_read_as_its_form(form: str) -> None:
    """The first graph of each form, whose operator the file's reader must recognise by itself."""
    composed = {
        "gemm.int16-output": "gemm.float-output",
        "matmul.int16-output": "matmul.float-output",
        "add.requantise": "add.integer-ratio",
        "requantise.chain": "requantise.uint8",
        "add.ties": "add.fractional-ratio",
        "float.mul-add": "float.mul",
        "add.float": "float.add",
        "softmax.portable": "float.reduce-sum.integers",
        "softmax.divided-later": "softmax.numerators",
        "layernorm.portable": "double.reduce-sum.integers",
        "layernorm.whole": "double.reduce-sum.integers",
        "softmax.fused": "float.softmax",
        "average-pool.fused": None,
    }
    record = next(one for one in FORMS if one.name == form)
    case = cases_of(record)[0]
    shape = next(iter(case.runs[0].feeds.values())).shape
    assert composed.get(form, form) in names(onnx.ModelProto.FromString(case.model), input_shape=shape)


def test_the_portable_composites_use_proved_forms_only() -> None:
    gamma = np.ones(64, np.float32)
    norm = layernorm_model(
        64, gamma, gamma, whole=False, dtype="int16", in_scale=0.01, epsilon=1e-6, scale=0.02, zero_point=128
    )
    assert unproved_forms(norm, input_shape=(1, 64)) == ()
    assert unproved_forms(softmax_model(197, scale=1 / 256, zero_point=0), input_shape=(1, 197)) == ()


def test_attention_divided_later_is_made_of_proved_forms_only() -> None:
    (form,) = (one for one in FORMS if one.name == "softmax.divided-later")
    model = onnx.ModelProto.FromString(cases_of(form)[0].model)
    assert names(model, input_shape=(2, 12, 197)) == {
        "quantize.uint8": 3,
        "dequantize.uint8": 3,
        "reduce-max.codes": 1,
        "float.sub": 1,
        "softmax.numerators": 1,
        "matmul.float-output": 1,
        "float.reduce-sum.integers": 1,
        "float.div": 1,
    }
    assert "float.reduce-sum" in names(model, input_shape=(2, 12, 66000)), (
        "sums of so many 8-bit codes pass 2^24"
    )


def test_a_sum_of_unknown_length_is_not_taken_for_exact() -> None:
    model = softmax_model(197, scale=1 / 256, zero_point=0)
    assert {used.form for used in unproved_forms(model)} == {"float.reduce-sum"}
    assert {used.form for used in unproved_forms(model, input_shape=(1, 300))} == {"float.reduce-sum"}


def test_an_operator_outside_the_kit_is_unproved() -> None:
    model = Model()
    result = model.node("Sinh", model.input("x", np.float32, 2))
    (used,) = unproved_forms(model.build({result: np.float32}))
    assert (used.op, used.form) == ("Sinh", None)


def test_only_pairs_that_kernels_add_count() -> None:
    """127 beside 127 saturates as (0, 1), and not as (1, 2)."""
    for weights, expected in (([127, 127, 0, 0], "gemm.w8.pair-saturation"), ([0, 127, 127, 0], "gemm.w8")):
        model = Model()
        weight = model.weight(np.asarray([weights]), np.asarray([0.01], np.float32), bits=8)
        result = model.node(
            "Gemm", model.dequantise(model.input("x", np.uint8, 2), 0.02, 0), weight, transB=1
        )
        assert expected in names(model.build({model.quantise(result, 0.1, 0): np.uint8}))


def test_forms_that_lowering_writes_are_portable_by_the_shipped_results() -> None:
    exact = frozenset.intersection(*(result.exact_forms for result in shipped_results()))
    assert {form.name for form in FORMS if form.emitted} <= exact
    assert not exact & {
        "add.fractional-ratio",
        "add.ties",
        "float.softmax",
        "conv.w8.pair-saturation",
        "float.reciprocal",
    }


def test_the_tables_of_the_documentation_are_those_of_the_results() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    assert updated(document) == document


def test_borders_are_a_form_of_their_own() -> None:
    model = Model()
    x = model.input("x", np.uint8, 4)
    pads = model.constant(np.asarray([0, 0, 1, 1, 0, 0, 1, 1]))
    outputs = {model.node("Pad", x, pads, mode="reflect"): np.uint8, model.node("Pad", x, pads): np.uint8}
    assert names(model.build(outputs)) == {"move.pad.borders": 1, "move.pad": 1}
