"""Models with codes at their ends give what the whole ones give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from mixport.records.runtime import RuntimeAnswer, RuntimeJob
from mixport.validate.run.session import with_code_outputs
from mixport.validate.runtimes.codes_at_ends import codes_at_ends
from tests.unit.validate.qdq_graphs import QdqBuilder, build_network


def answer(job: RuntimeJob) -> RuntimeAnswer:
    """What this machine's onnxruntime gives."""
    session = onnxruntime.InferenceSession(job.model, providers=["CPUExecutionProvider"])
    runs = [
        dict(zip(job.outputs, session.run(list(job.outputs), dict(run)), strict=True)) for run in job.feeds
    ]
    return RuntimeAnswer(runs=tuple(runs))


def job_of(model: onnx.ModelProto, outputs: Sequence[str], *, count: int = 2) -> RuntimeJob:
    rng = np.random.default_rng(0)
    feeds = [{"input": rng.normal(0, 1.5, (1, 3, 8, 8)).astype(np.float32)} for _ in range(count)]
    return RuntimeJob(model=model.SerializeToString(), feeds=feeds, outputs=tuple(outputs))


def ending_in_codes() -> QdqBuilder:
    b = build_network(clip=None)
    b.quantise("head_sum", "logits", 0.05, 111)
    scale, zero_point, _ = b.quantisation["logits"]
    parameters = [b.constant(scale), b.constant(np.uint8(zero_point))]
    b.node("DequantizeLinear", ["logits", *parameters], output="output")
    return b


def ports(job: RuntimeJob) -> tuple[dict[str, int], dict[str, int]]:
    graph = onnx.load_model_from_string(job.model).graph
    inputs, outputs = (
        {one.name: one.type.tensor_type.elem_type for one in some} for some in (graph.input, graph.output)
    )
    return inputs, outputs


def test_both_ends_become_codes_and_the_answer_is_the_same() -> None:
    asked = job_of(ending_in_codes().build("output"), ["output"])
    coded = codes_at_ends(asked)
    uint8 = onnx.TensorProto.UINT8
    assert ports(coded.job) == ({"input_codes": uint8}, {"logits": uint8})
    assert coded.job.outputs == ("logits",)
    assert {array.dtype for run in coded.job.feeds for array in run.values()} == {np.dtype(np.uint8)}
    for got, wanted in zip(coded.answer(answer(coded.job)).runs, answer(asked).runs, strict=True):
        np.testing.assert_array_equal(got["output"], wanted["output"])


def test_inner_codes_are_answered_too_and_those_of_the_input_are_ours() -> None:
    model = ending_in_codes().build("output")
    names = ["input_codes", "stem", "join", "logits", "output"]
    exposed = with_code_outputs(save(model), [name for name in names if name != "output"])
    asked = job_of(exposed, names)
    coded = codes_at_ends(asked)
    assert coded.job.outputs == ("stem", "join", "logits")
    for got, wanted in zip(coded.answer(answer(coded.job)).runs, answer(asked).runs, strict=True):
        assert set(got) == set(names)
        for name in names:
            np.testing.assert_array_equal(got[name], wanted[name])


def test_other_ends_stay_as_they_are() -> None:
    """Float logits behind a Gemm have no quantiser: whoever cannot run them refuses."""
    asked = job_of(build_network(clip=None).build("head_sum"), ["output"])
    coded = codes_at_ends(asked)
    inputs, outputs = ports(coded.job)
    assert inputs == {"input_codes": onnx.TensorProto.UINT8}
    assert outputs == {"output": onnx.TensorProto.FLOAT}
    np.testing.assert_array_equal(
        coded.answer(answer(coded.job)).runs[0]["output"], answer(asked).runs[0]["output"]
    )


def test_an_input_with_two_readers_stays_a_float() -> None:
    b = QdqBuilder(shape=(1, 3, 8, 8))
    b.quantise("input", "codes", 0.03, 128)
    total = b.node("Add", [b.dequantise("codes"), "input"])
    asked = job_of(b.build(total), ["output"])
    assert ports(codes_at_ends(asked).job)[0] == {"input": onnx.TensorProto.FLOAT}


def test_what_is_no_model_is_given_on_as_it_is() -> None:
    job = RuntimeJob(model=b"no model", feeds=[{}], outputs=("y",))
    assert codes_at_ends(job).job == job


def test_a_refusal_stays_one() -> None:
    coded = codes_at_ends(job_of(ending_in_codes().build("output"), ["output"]))
    refused = RuntimeAnswer(runs=(), refused="no")
    assert coded.answer(refused) == refused


@pytest.fixture(autouse=True)
def _folder(tmp_path: Any) -> None:
    global _FOLDER
    _FOLDER = tmp_path


def save(model: onnx.ModelProto) -> Any:
    path = _FOLDER / "model.onnx"
    onnx.save(model, path)
    return path
