"""The runtimes that are installed here, for real: small models, exact on each; a model that must not be,
placed rightly.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mixport.cli.program import run
from mixport.records.errors import RuntimeUnavailableError
from mixport.records.runtime import RuntimeJob
from mixport.validate.runtimes import ONNXRUNTIMES, open_runtimes, survey
from tests.unit.validate.runtimes.conftest import POLICY, jobs, quantised, quantiser

__all__ = ["jobs", "quantiser"]

Capture = pytest.CaptureFixture[str]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]


def need(name: str) -> None:
    """Skip, with what is missing and how to get it."""
    try:
        open_runtimes([name])
    except RuntimeUnavailableError as error:
        pytest.skip(f"{error}; {error.hint}")


MODELS = (("tiny", "w8a8"), ("tiny", "w2a4"), ("transformer", "w8a8"), ("transformer", "w4a8"))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory, tiny_cache: Path) -> dict[tuple[str, str], Path]:
    """Bundles by model and scheme, all with portable forms, first and last layer at 8 bits."""
    folder = tmp_path_factory.mktemp("portable")
    made: dict[tuple[str, str], Path] = {}
    for model, scheme in MODELS:
        out = folder / f"{model}-{scheme}"
        words = [
            "build",
            f"tests.models:{model}",
            "--scheme",
            scheme,
            "--calib",
            "noise",
            "--images",
            "16",
            "--iters",
            "20",
        ]
        assert (
            run(
                [*words, "--validation-images", "4", "--cache", str(tiny_cache), "--out", str(out), "--quiet"]
            )
            == 0
        )
        made[model, scheme] = out
    return made


@pytest.mark.parametrize("name", ONNXRUNTIMES)
def test_jobs_run(name: str, jobs: tuple[RuntimeJob, ...]) -> None:
    need(name)
    (runtime,) = open_runtimes([name])
    info, answers = runtime.run(jobs, policy=POLICY)
    assert info.version[0].isdigit() and info.cpu
    for job, answer in ((jobs[0], answers[0]), (jobs[2], answers[2])):
        for feeds, found in zip(job.feeds, answer.runs, strict=True):
            np.testing.assert_array_equal(found["y"], quantised(np.asarray(feeds["x"])), strict=True)
    assert answers[1].refused and answers[1].runs == ()


@pytest.mark.parametrize("name", ["wasm", "wasm-chromium"])
def test_a_bundle_is_timed_elsewhere(
    name: str, capsys: Capture, bundles: dict[tuple[str, str], Path]
) -> None:
    need(name)
    bundle = bundles["tiny", "w8a8"]
    words = [
        "--runtime",
        "native",
        "--runtime",
        name,
        "--against",
        str(bundle / "model.onnx"),
        "--seconds",
        "0.1",
    ]
    assert run(["bench", str(bundle), *words, "--json", "--quiet"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["runtime"], row["name"]) for row in rows] == [
        (one, path) for one in ("native", name) for path in (str(bundle), str(bundle / "model.onnx"))
    ]
    for own, other in (rows[:2], rows[2:]):
        assert own["ratio_to_bundle"] == 1.0 and own["rounds"] == other["rounds"] >= 20
        assert other["bundle_ratio"] == pytest.approx(own["median_ms"] / other["median_ms"])


@pytest.mark.parametrize("name", ["x64-avx2", "arm64"])
def test_times_of_an_emulator_are_refused(
    name: str, capsys: Capture, bundles: dict[tuple[str, str], Path]
) -> None:
    need(name)
    assert run(["bench", str(bundles["tiny", "w8a8"]), "--runtime", name]) == 1
    assert f"runtime {name} is emulated" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "features"), [("x64-avx2", {"avx2"}), ("arm64", {"asimddp"})])
def test_an_emulated_processor_is_not_the_host_s(
    name: str, features: set[str], jobs: tuple[RuntimeJob, ...]
) -> None:
    need(name)
    info, _ = open_runtimes([name])[0].run(jobs[2:], policy=POLICY)
    assert features <= set(info.cpu.split()) and "vnni" not in info.cpu and "QEMU" in info.cpu


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.sweep if name == "arm64" else ())
        for name in ONNXRUNTIMES
        if name != "native"
    ],
)
def test_small_models_are_exact(name: str, bundles: dict[tuple[str, str], Path], capsys: Capture) -> None:
    need(name)
    for bundle in bundles.values():
        code = run(["validate", str(bundle), "--runtime", name, "--json", "--quiet"])
        document = json.loads(capsys.readouterr().out)
        assert (code, document["divergences"], document["localisations"]) == (0, [], [])
        (result,) = document["runtimes"]
        assert (result["name"], result["mismatches"]) == (name, 0) and result["values"] > 0
        assert json.loads((bundle / "manifest.json").read_text())["validation"]["float_islands"] == []


def test_a_build_names_every_runtime(tiny_cache: Path, tmp_path: Path, capsys: Capture) -> None:
    names = [one.name for one in survey(ONNXRUNTIMES) if one.present]
    if len(names) == 1:
        pytest.skip("only native is installed; mixport runtimes install all")
    words = [
        "build",
        "tests.models:tiny",
        "--scheme",
        "w2a4",
        "--calib",
        "noise",
        "--images",
        "16",
        "--iters",
        "20",
    ]
    words += [
        "--validation-images",
        "4",
        "--cache",
        str(tiny_cache),
        "--out",
        str(tmp_path / "out"),
        "--json",
        "--quiet",
    ]
    assert run([*words, *(word for name in names for word in ("--runtime", name))]) == 0
    validation = json.loads(capsys.readouterr().out)["validation"]
    assert {one["name"] for one in validation["runtimes"]} == {*names, "simulation"}
    assert all(name in validation["claim"] for name in names if name != "native")


def test_saturated_pairs_without_vnni_are_placed(tmp_path: Path, capsys: Capture) -> None:
    need("x64-avx2")
    from mixport.records.targets import load_target
    from mixport.validate.run.golden import recheck
    from tests.unit.validate.test_other_runtimes import one_layer

    (tmp_path / "model.onnx").write_bytes(one_layer([127, 127, 1], y_scale=300.0).SerializeToString())
    x = np.array([255, 255, 3], np.float32).reshape(1, 3, 1, 1)
    expected = np.array([216], np.uint8).reshape(1, 1, 1, 1)
    output = expected.astype(np.float32) * np.float32(300)
    (runtime,) = open_runtimes(["x64-avx2"])
    found = recheck(
        tmp_path / "model.onnx", x, {"y": expected}, output, load_target("ort-cpu").session, runtime=runtime
    )
    assert found.located is not None and (found.located.site, found.located.cause) == ("y", "pair-saturation")
    assert "saturating them gives the very value" in found.located.explanation
