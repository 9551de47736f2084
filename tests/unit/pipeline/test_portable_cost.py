"""What portable forms cost: each pair of files is one function, and the figures add up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from mixport.lower.operators.timing_pairs import write_pair
from mixport.pipeline.portable_cost import portable_cost
from mixport.records.quantized_model import CompositeForm
from mixport.records.targets import load_target

FORMS = (
    CompositeForm(kind="softmax", shape=(1, 2, 16, 16)),
    CompositeForm(kind="layer_norm", shape=(1, 16, 24)),
    CompositeForm(kind="attention", shape=(1, 2, 16, 16)),
)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.kind)
def test_both_files_compute_the_same_function(form: CompositeForm, tmp_path: Path) -> None:
    portable, own = write_pair(form, tmp_path)
    # Scores that are codes: attention reads them as such.
    x = (np.random.default_rng(0).integers(-60, 60, (1, *form.shape)) / 16).astype(np.float32)
    a, b = (
        ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(["output"], {"input": x})[0]
        for path in (portable, own)
    )
    # Attention weights values up to 1 with 8 bits, relative to the largest weight or to 1.
    assert np.abs(a - b).max() < (2**-6 if form.kind == "attention" else 1e-3)
    kinds = [{node.op_type for node in onnx.load(str(path)).graph.node} for path in (portable, own)]
    assert not kinds[0] & {"Softmax", "LayerNormalization"}
    assert kinds[1] & {"Softmax", "LayerNormalization"}


def test_equal_forms_are_timed_once_and_counted() -> None:
    cost = portable_cost(1000.0, [FORMS[0], FORMS[0], FORMS[1]], session=load_target("ort-cpu").session)
    assert cost is not None
    assert [(one.kind, one.count) for one in cost.forms] == [("softmax", 2), ("layer_norm", 1)]
    assert all(one.portable_ms > 0 and one.own_ms > 0 for one in cost.forms)
    assert cost.model_ms == 1000.0
    extra = sum(one.count * (one.portable_ms - one.own_ms) for one in cost.forms)
    assert cost.ratio == pytest.approx(1000.0 / (1000.0 - extra))


def test_a_model_without_them_costs_nothing() -> None:
    assert portable_cost(1.0, (), session=load_target("ort-cpu").session) is None
