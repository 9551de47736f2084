"""Qualcomm's HTP simulator: every form's codes, and nothing beside it; skipped where it is not installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mixport.records.errors import BadInputError, RuntimeUnavailableError
from mixport.records.runtime import RuntimeJob
from mixport.records.targets import load_target
from mixport.validate.runtimes import open_runtimes, qnn, survey
from tests.htp_forms import ARCHES, CODES, FORMS, SEEDS, defined, simulated
from tests.unit.validate.qdq_graphs import QdqBuilder

installed = pytest.mark.skipif(not qnn.is_here(), reason="needs `mixport runtimes install qnn-htp68`")


@installed
@pytest.mark.parametrize("arch", ARCHES)
def test_every_form_on_the_simulator(arch: str) -> None:
    found = simulated(arch)
    for form in FORMS:
        for seed in SEEDS:
            codes = found[form, seed]
            assert not isinstance(codes, str), f"{form}: {codes}"
            np.testing.assert_array_equal(codes, defined(form, seed, arch), err_msg=f"{form}, seed {seed}")


@installed
def test_what_the_accelerator_does_not_take_is_refused_and_not_run_beside_it() -> None:
    b = QdqBuilder(shape=(1, 3, 8, 8))
    b.quantise("input", CODES, 0.03, 128)
    scale, zero_point, _ = b.quantisation[CODES]
    moved = b.node("Slice", [CODES, *(b.constant(np.asarray([one])) for one in (0, 4, 2))])
    b.node("DequantizeLinear", [moved, b.constant(scale), b.constant(np.uint8(zero_point))], output="floats")
    b.node("Sin", ["floats"], output="output")
    (runtime,) = open_runtimes(["qnn-htp68"])
    job = RuntimeJob(
        model=b.build("output").SerializeToString(),
        feeds=[{"input": np.zeros((1, 3, 8, 8), np.float32)}],
        outputs=("output",),
    )
    info, (answer,) = runtime.run([job], policy=load_target("onnx-int8").session)
    assert answer.runs == () and "fallback" in answer.refused.lower()
    assert info.version == "1.31.1"


def test_a_version_and_another_system_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInputError, match=r"has one version, onnxruntime-qnn 2\.7\.0"):
        open_runtimes(["qnn-htp68@2.6.0"])
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(RuntimeUnavailableError, match=r"x86-64 Linux alone, not for .*aarch64"):
        open_runtimes(["qnn-htp73"])


def test_files_for_another_arithmetic_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any work: its codes differ by design."""
    monkeypatch.setattr(qnn, "kept", lambda folder: Path("here"))
    message = "qnn-htp68 computes the codes of htp68, the file is made for those of onnxruntime"
    with pytest.raises(BadInputError, match=message):
        open_runtimes(["native", "qnn-htp68"], arithmetic="onnxruntime")
    assert [one.arithmetic for one in open_runtimes(["qnn-htp68", "qnn-htp73"])] == ["htp68", "htp73"]
    with pytest.raises(BadInputError, match="native computes the codes of onnxruntime"):
        open_runtimes(["native"], arithmetic="htp68")


def test_what_is_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qnn, "kept", lambda folder: None)
    with pytest.raises(RuntimeUnavailableError, match=r"onnxruntime-qnn 2\.7\.0 is missing") as caught:
        open_runtimes(["qnn-htp73"])
    assert caught.value.hint == "mixport runtimes install qnn-htp73"
    (entry,) = survey(["qnn-htp73"])
    assert not entry.present and entry.download_mb > 0 and "arch 73" in entry.where
