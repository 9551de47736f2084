"""The kit on ONNX Runtime in this process, and on runtimes that are wrong on purpose."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
import pytest

from mixport.records.errors import BadOptionError, RuntimeUnavailableError
from mixport.records.machine import vector_features
from mixport.records.runtime import RuntimeAnswer, RuntimeInfo, RuntimeJob
from mixport.records.targets import SessionRules, load_target
from mixport.validate.conformance.catalogue import FORMS, cases_of, choose
from mixport.validate.conformance.forms.case import FormCase
from mixport.validate.conformance.kit import Kit, judge, make_kit, run_kit
from mixport.validate.conformance.measured import ConformanceResult, shipped_results
from tests.unit.validate.conformance.in_process import InProcess

POLICY = load_target("ort-cpu").session
VNNI = bool({"avx512_vnni", "avx_vnni"} & set(vector_features()))

EMITTED = frozenset(form.name for form in FORMS if form.emitted)
"""Forms that the portable lowering writes."""


@pytest.fixture(scope="module")
def native(kit: Kit) -> ConformanceResult:
    return run_kit(kit, InProcess(), policy=POLICY)


def test_some_hundred_graphs_of_forms_with_names_of_their_own(kit: Kit) -> None:
    assert kit.graphs > 300
    assert len({form.name for form in FORMS}) == len(FORMS)
    for _, cases in kit.forms:
        assert len({case.name for case in cases}) == len(cases)
        assert all(case.runs and case.values for case in cases)


def test_every_form_that_lowering_writes_is_exact_here(native: ConformanceResult) -> None:
    wrong = {
        name: native.forms[name].first or native.forms[name].message for name in EMITTED - native.exact_forms
    }
    # Without VNNI only pairs that saturate may differ, and no emitted form has any.
    assert not wrong


def test_the_shipped_result_is_of_this_kit_and_says_the_same(kit: Kit, native: ConformanceResult) -> None:
    # The newest one, where this very version has none.
    results = [result for result in shipped_results() if result.name == "native"]
    shipped = next(
        (result for result in results if result.runtime.version == native.runtime.version), results[0]
    )
    assert shipped.kit_sha256 == kit.sha256, (
        "python -m tests.benchmarks.conformance_table --measure writes them again"
    )
    # It was made on x64 with VNNI: elsewhere other kernels run, and only the emitted forms must agree.
    alike = VNNI and platform.machine() == "x86_64"
    names = native.forms.keys() if alike else EMITTED
    assert {name: native.forms[name].exact for name in names} == {
        name: shipped.forms[name].exact for name in names
    }


def test_a_result_is_of_a_runtime_and_a_version() -> None:
    found = run_kit(make_kit(choose(["max-pool"])), InProcess(name="native@1.2.3"), policy=POLICY)
    assert (found.name, found.file_name) == ("native", f"native-{found.runtime.version}.json")


def test_the_kit_can_fail(native: ConformanceResult) -> None:
    for name in ("add.fractional-ratio", "add.ties", "float.softmax", "float.exp", "float.matmul"):
        assert not native.forms[name].exact
        first = native.forms[name].first
        assert first is not None
        assert first.expected != first.got


def off_by_one(outputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """One value of each output is one code, or one ulp, off."""
    spoilt: dict[str, np.ndarray] = {}
    for name, array in outputs.items():
        copy = array.copy()
        flat = copy.reshape(-1)
        flat[-1] = (
            flat[-1] ^ 1 if copy.dtype.kind in "iu" else np.nextafter(flat[-1], flat[-1].dtype.type(1e30))
        )
        spoilt[name] = copy
    return spoilt


@pytest.mark.parametrize(
    "spoil",
    [
        off_by_one,
        lambda outputs: {},
        lambda outputs: {name: array[..., :-1] for name, array in outputs.items()},
        lambda outputs: {
            name: array.astype(np.float64 if array.dtype == np.float32 else np.float32)
            for name, array in outputs.items()
        },
    ],
    ids=["one-off", "missing", "shorter", "other-type"],
)
def test_a_wrong_runtime_is_found_out_in_every_form(spoil: object) -> None:
    small = make_kit(
        choose(
            [
                "conv.grouped",
                "add.integer-ratio",
                "quantize.int16",
                "float.mul",
                "double.reduce-sum",
                "softmax.portable",
            ]
        )
    )
    found = run_kit(small, InProcess(spoil=spoil), policy=POLICY)  # type: ignore[arg-type]
    for form, cases in small.forms:
        result = found.forms[form.name]
        assert not result.exact
        assert result.mismatches >= len(cases)
        assert result.first is not None
        assert result.first.case.startswith(cases[0].name)


def test_a_fused_multiply_add_is_found_out() -> None:
    """What x64 does in QLinearAdd, done to a float Mul and Add: the kit's inputs make it visible."""
    form = next(form for form in FORMS if form.name == "float.mul-add")
    cases = cases_of(form)
    case = next(case for case in cases if case.name == "mul-add")
    answers = []
    for one in cases:
        runs = []
        for run in one.runs:
            a, b, c = (run.feeds[name].astype(np.float64) for name in "abc")
            runs.append({one.outputs[0]: (a * b + (c if one is case else -c)).astype(np.float32)})
        answers.append(RuntimeAnswer(runs=tuple(runs)))
    assert judge(cases, answers, runtime="fma").mismatches > case.values // 10


def test_the_unfused_graph_is_found_out() -> None:
    """Near ties and integer sums tell float kernels from integer kernels."""
    small = make_kit(choose(["conv.w8", "matmul.dynamic", "gemm.float-output", "mul"]))
    found = run_kit(small, InProcess(), policy=replace_level("disabled"))
    assert not found.forms["conv.w8"].exact
    assert not found.forms["matmul.dynamic"].exact
    assert not found.forms["gemm.float-output"].exact


def replace_level(level: str) -> SessionRules:
    return POLICY.model_copy(update={"optimization_level": level})


def test_a_refused_graph_is_no_exact_form() -> None:
    form = next(form for form in FORMS if form.name == "max-pool")
    cases = tuple(replace(case, model=case.model.replace(b"MaxPool", b"MaxFool")) for case in cases_of(form))
    assert onnx.ModelProto.FromString(cases[0].model).graph.node[0].op_type == "MaxFool"
    _, answers = InProcess().run([_job(case) for case in cases], policy=POLICY)
    result = judge(cases, answers, runtime="native")
    assert (result.refused, result.exact, result.mismatches) == (len(cases), False, 0)
    assert "MaxFool" in result.message


def _job(case: FormCase) -> RuntimeJob:
    return RuntimeJob(model=case.model, feeds=[run.feeds for run in case.runs], outputs=case.outputs)


def test_a_runtime_must_answer_every_job() -> None:
    class Lazy(InProcess):
        def run(
            self, jobs: Sequence[RuntimeJob], *, policy: SessionRules
        ) -> tuple[RuntimeInfo, tuple[RuntimeAnswer, ...]]:
            return InProcess().run(jobs[:-1], policy=policy)

    with pytest.raises(RuntimeUnavailableError, match="answers to 4 jobs"):
        run_kit(make_kit(choose(["max-pool"])), Lazy(name="lazy"), policy=POLICY)


def test_near_ties_and_both_ends_are_among_the_inputs(kit: Kit) -> None:
    """Forms with an 8-bit output saturate at both ends, and exact-ties graphs reach sums that lie exactly
    between two codes.
    """
    cases = {form.name: cases for form, cases in kit.forms}
    for name in (
        "conv.w8",
        "conv.w4.int4",
        "conv.w2.int2",
        "gemm.w8",
        "matmul.dynamic",
        "mul",
        "global-average-pool",
        "quantize.uint8",
    ):
        codes = np.concatenate(
            [next(iter(run.expected.values())).reshape(-1) for case in cases[name] for run in case.runs]
        )
        assert {0, 255} <= set(codes.tolist()), name
        kinds = {run.kind for case in cases[name] for run in case.runs}
        assert kinds & {"near-tie", "all-pairs"}, name


def test_the_same_cases_every_time(kit: Kit) -> None:
    again = make_kit(choose(["conv.depthwise", "layernorm"]))
    first = {form.name: cases for form, cases in kit.forms}
    for form, cases in again.forms:
        for case, before in zip(cases, first[form.name], strict=True):
            assert case.model == before.model
            for run, other in zip(case.runs, before.runs, strict=True):
                for name in run.feeds:
                    np.testing.assert_array_equal(run.feeds[name], other.feeds[name])


def test_an_unknown_prefix_is_refused() -> None:
    with pytest.raises(BadOptionError, match="--form is nix"):
        choose(["nix"])
