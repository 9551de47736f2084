"""Whole commands on a tiny model: what scripts rely on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from mixport.cli.program import run
from mixport.pipeline import stages
from mixport.pipeline.build_plan import resolve
from mixport.pipeline.options.build_options import BuildOptions
from mixport.records.runtime import RuntimeInfo

pytestmark = pytest.mark.e2e

Capture = pytest.CaptureFixture[str]
TINY = [
    "build",
    "tests.models:tiny",
    "--calib",
    "noise",
    "--images",
    "16",
    "--iters",
    "0",
    "--validation-images",
    "8",
]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def build(capsys: Capture, *words: str, code: int = 0) -> dict[str, Any]:
    """Run a build with --json, check its exit code, and give its one document."""
    assert run([*TINY, *words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_json_is_the_manifest_of_the_bundle(capsys: Capture, tmp_path: Path, tiny_cache: Path) -> None:
    document = build(capsys, "--cache", str(tiny_cache), "--out", "out")
    assert document == json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert document["validation"]["verdict"] == "exact"
    assert document["signature"] == {
        "task": "classification",
        "inputs": [{"name": "input", "shape": [None, 3, 32, 32], "role": "image"}],
        "outputs": [{"name": "output", "shape": [None, 10], "role": "logits"}],
    }
    assert document["scheme"] == "w4a8"
    assert document["reproduce"].startswith("mixport build tests.models:tiny")
    assert {"load", "calibrate", "quantize", "lower", "validate", "evaluate"} <= document["timings_s"].keys()
    files = {
        path.relative_to(tmp_path / "out").as_posix()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert files == {
        "manifest.json", "model.onnx", "golden/inputs.npz", "golden/codes.npz", "golden/outputs.npz",
        "report.html", "SHA256SUMS",
    }  # fmt: skip


def test_images_that_another_process_prunes_meanwhile_are_explained(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stages.calibrate

    def pruned(*arguments: Any) -> Any:
        made = real(*arguments)
        shutil.rmtree(made.images_path.parent)
        return made

    monkeypatch.setattr(stages, "calibrate", pruned)
    assert run([*TINY, "--cache", "own", "--out", "out"]) == 1
    errors = capsys.readouterr().err
    assert "images.npy are gone" in errors
    assert "hint: run the same command again" in errors


def test_the_default_folder_is_named_after_the_model(
    capsys: Capture, tmp_path: Path, tiny_cache: Path
) -> None:
    build(capsys, "--cache", str(tiny_cache))
    assert (tmp_path / "dist" / "tiny-w4a8-ort-cpu" / "model.onnx").is_file()


def test_a_scheme_and_a_target_have_a_folder_of_their_own() -> None:
    def of(*targets: str, **options: object) -> list[str]:
        checked = BuildOptions.of({"calib": "noise", "target": targets, **options})
        return [folder.as_posix() for folder in resolve(checked).folders("tiny")]

    assert of("ort-cpu") == ["dist/tiny-w4a8-ort-cpu"]
    assert of("ort-cpu", "onnx-int8", scheme="w8a8") == ["dist/tiny-w8a8-ort-cpu", "dist/tiny-w8a8-onnx-int8"]
    assert of("ort-cpu", scheme="auto:0.10") == ["dist/tiny-auto-0.10-ort-cpu"]
    assert of("ort-cpu", out="a") == ["a"]
    assert of("ort-cpu", "onnx-int8", out="a") == ["a/ort-cpu", "a/onnx-int8"]


def test_that_the_bundle_of_another_build_is_replaced_is_said(capsys: Capture, tiny_cache: Path) -> None:
    for scheme, said in (("w8a8", False), ("w8a8", False), ("w4a8", True)):
        assert run([*TINY, "--scheme", scheme, "--cache", str(tiny_cache), "--out", "out"]) == 0
        errors = capsys.readouterr().err
        assert (
            "out holds the bundle of another build, which this one replaces: mixport build" in errors
        ) is said


def test_files_that_are_no_images_are_named(capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 40), (200, 10, 60)).save(tmp_path / "photos" / "a.png")
    for name in ("b.gif", "c.heic", "d.heic"):
        (tmp_path / "photos" / name).touch()
    run([*TINY, "--calib", "images:photos", "--cache", "own", "--out", "out"])
    assert (
        "photos: left out 3 files that are no .bmp, .jpeg, .jpg, .png, .webp: .heic (2), .gif (1)"
        in capsys.readouterr().err
    )


def test_two_builds_give_the_same_bytes(capsys: Capture, tmp_path: Path) -> None:
    build(capsys, "--cache", "first", "--out", "a")
    build(capsys, "--cache", "second", "--out", "b")
    for name in ("model.onnx", "golden/inputs.npz", "golden/codes.npz", "golden/outputs.npz"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("version", "words", "expected"), [("99.0.0", [], 1), ("99.0.0", ["--no-portable"], 0), ("1.31.1", [], 0)]
)
def test_a_version_without_a_conformance_result_is_told(
    version: str,
    words: list[str],
    expected: int,
    capsys: Capture,
    tiny_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "mixport.validate.validate.runtime_info",
        lambda: RuntimeInfo(name="onnxruntime", version=version, cpu="x"),
    )
    document = build(capsys, "--cache", str(tiny_cache), "--out", "out", *words)
    found = [one["message"] for one in document["warnings"] if one["about"] == "portable forms"]
    assert len(found) == expected and all(
        text.startswith("no conformance result of onnxruntime 99.0.0 (measured: ") for text in found
    )


def test_a_second_build_takes_every_stage_from_the_cache(
    capsys: Capture, tiny_cache: Path, tiny_bundle: Path
) -> None:
    assert run([*TINY, "--cache", str(tiny_cache), "--out", "out"]) == 0
    errors = capsys.readouterr().err
    assert [
        line
        for line in errors.splitlines()
        if line.startswith("quantize: ") and line.endswith("(from the cache)")
    ]
    assert [
        line
        for line in errors.splitlines()
        if line.startswith("lower: ") and line.endswith("(from the cache)")
    ]


def test_several_targets_give_one_bundle_each(capsys: Capture, tmp_path: Path, tiny_cache: Path) -> None:
    document = build(
        capsys, "--cache", str(tiny_cache), "--target", "ort-cpu", "--target", "onnx-int8", "--out", "out"
    )
    assert [manifest["target"]["name"] for manifest in document["bundles"]] == ["ort-cpu", "onnx-int8"]
    for name in ("ort-cpu", "onnx-int8"):
        assert run(["validate", str(tmp_path / "out" / name), "--quiet"]) == 0


def test_labelled_images_give_accuracy_and_gates(capsys: Capture, tmp_path: Path, tiny_cache: Path) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (40, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "eval.npz", images=images, labels=generator.integers(0, 10, 40))
    gates = ["--gate", "top1_drop<=100", "--gate", "mismatches==0", "--gate", "size_ratio<=1000"]
    document = build(capsys, "--cache", str(tiny_cache), "--eval", "eval.npz", "--out", "out", *gates)
    metrics = document["metrics"]
    assert metrics["images"] == 40
    assert 0 <= metrics["top1_float"] <= 100
    assert 0 <= metrics["top1_quantized"] <= 100
    assert metrics["size_bytes"] == (tmp_path / "out" / "model.onnx").stat().st_size
    assert [gate["passed"] for gate in document["gates"]] == [True, True, True]


def test_a_gate_that_fails_exits_with_3_and_leaves_the_bundle(
    capsys: Capture, tmp_path: Path, tiny_cache: Path
) -> None:
    document = build(capsys, "--cache", str(tiny_cache), "--gate", "size_bytes<=1", "--out", "out", code=3)
    assert [gate["passed"] for gate in document["gates"]] == [False]
    assert document["validation"]["verdict"] == "exact"
    capsys.readouterr()
    # Codes that agree do not make it fit to ship: a pipeline that only validates must stop as well.
    assert run(["validate", str(tmp_path / "out")]) == 3
    assert "gate size_bytes<=1 was not met" in capsys.readouterr().err


def test_a_gate_on_accuracy_without_labelled_images_is_refused_at_once(
    capsys: Capture, tmp_path: Path
) -> None:
    assert run([*TINY, "--gate", "top1_drop<=1", "--out", "out"]) == 2
    errors = capsys.readouterr().err
    assert "--gate 'top1_drop<=1' needs labelled images, and --eval is not given" in errors
    assert "hint: mixport build --eval DIR --gate 'top1_drop<=1' ..." in errors
    assert list(tmp_path.iterdir()) == []


def test_options_come_from_the_file_too(capsys: Capture, tmp_path: Path, tiny_cache: Path) -> None:
    (tmp_path / "mixport.toml").write_text(
        '[build]\nmodel = "tests.models:tiny"\ncalib = "noise"\nimages = 16\niters = '
        "0\nvalidation-images = 8\nedge-bits = 7\n"
        f'cache = "{tiny_cache}"\n'
    )
    assert run(["build", "--out", "out", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["edge_bits"] == 7
    assert "--edge-bits 7" in document["reproduce"]


def test_python_s_door_gives_the_same_file(tiny_bundle: Path, tmp_path: Path, tiny_cache: Path) -> None:
    import mixport

    bundle = mixport.build(
        "tests.models:tiny",
        calib="noise",
        images=16,
        iters=0,
        validation_images=8,
        out=tmp_path / "out",
        cache=tiny_cache,
        target="ort-cpu",
    )
    assert bundle.model_path.read_bytes() == (tiny_bundle / "model.onnx").read_bytes()


def test_python_s_door_raises_when_a_gate_fails(tmp_path: Path, tiny_cache: Path) -> None:
    import mixport
    from mixport.records.errors import ValidationFailedError

    with pytest.raises(ValidationFailedError, match=r"gate size_bytes<=1(\.0)? is not met"):
        mixport.build(
            "tests.models:tiny",
            calib="noise",
            images=16,
            iters=0,
            validation_images=8,
            gate="size_bytes<=1",
            out=tmp_path / "out",
            cache=tiny_cache,
        )
    assert (tmp_path / "out" / "manifest.json").is_file()


def test_validate_accepts_a_bundle(capsys: Capture, tiny_bundle: Path) -> None:
    assert run(["validate", str(tiny_bundle), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"] == "exact"


@pytest.mark.parametrize("name", ["model.onnx", "golden/codes.npz", "report.html", "manifest.json"])
def test_validate_finds_a_changed_file(name: str, capsys: Capture, tmp_path: Path, tiny_bundle: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    with (tmp_path / "bundle" / name).open("ab") as stream:
        stream.write(b" ")
    assert run(["validate", "bundle"]) == 3
    assert name in capsys.readouterr().err


def hash_again(bundle: Path) -> None:
    """Right hashes for whatever the files hold now."""
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"] = {
        name: hashlib.sha256((bundle / name).read_bytes()).hexdigest() for name in manifest["files"]
    }
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    sums = [
        (name, hashlib.sha256((bundle / name).read_bytes()).hexdigest())
        for name in [*manifest["files"], "manifest.json"]
    ]
    (bundle / "SHA256SUMS").write_text(
        "".join(f"{digest}  {name}\n" for name, digest in sums), encoding="utf-8"
    )


@pytest.mark.parametrize("scale", ["depthwise.0.bias/scale", "branch.0.weight/scale"])
def test_validate_finds_a_scale_off_by_one_ulp_that_no_golden_code_shows(
    scale: str, capsys: Capture, tmp_path: Path, tiny_bundle: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    model = onnx.load(str(bundle / "model.onnx"))
    tensor = next(one for one in model.graph.initializer if one.name == scale)
    tensor.CopyFrom(
        numpy_helper.from_array(np.nextafter(numpy_helper.to_array(tensor), np.float32(np.inf)), scale)
    )
    onnx.save(model, str(bundle / "model.onnx"))
    hash_again(bundle)
    assert run(["validate", "bundle", "--json"]) == 3
    written = capsys.readouterr()
    [problem] = json.loads(written.out)["proof_problems"]
    assert problem.startswith(f"node {scale[: scale.index('.0') + 2]}/Conv: ") and problem in written.err


def test_validate_finds_a_wrong_code_behind_right_hashes(
    capsys: Capture, tmp_path: Path, tiny_bundle: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    path = bundle / "golden" / "codes.npz"
    with np.load(path) as stored:
        codes = {name: stored[name].copy() for name in stored.files}
    site = list(codes)[2]
    codes[site].flat[5] ^= 1
    np.savez_compressed(path, **codes)
    hash_again(bundle)
    assert run(["validate", "bundle", "--json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"] == "mismatch"
    assert [result["mismatches"] for result in document["runtimes"]] == [1]
    assert [one["site"] for one in document["divergences"]] == [site]


def test_a_mismatch_exits_with_3_and_leaves_the_bundle(
    capsys: Capture, tmp_path: Path, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mixport.pipeline import build_target as pipeline
    from mixport.records.validation_report import Divergence

    real = pipeline.validate

    def validate(*arguments: Any, **options: Any) -> Any:
        report = real(*arguments, **options)
        first = Divergence(
            site="stem.0", index=(0, 1), expected=3.0, got=4.0, executor="onnxruntime", inputs="images"
        )
        native = replace(report.runtimes[0], mismatches=1)
        return replace(
            report, verdict="mismatch", divergences=(first,), runtimes=(native, *report.runtimes[1:])
        )

    monkeypatch.setattr(pipeline, "validate", validate)
    assert run([*TINY, "--cache", str(tiny_cache), "--out", "out"]) == 3
    errors = capsys.readouterr().err
    assert "validation found a mismatch, first at stem.0[0, 1] (onnxruntime: 4.0, not 3.0)" in errors
    assert "gate mismatches==0" in errors
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["validation"]["verdict"] == "mismatch"


def test_inspect_names_every_node(capsys: Capture, tiny_bundle: Path) -> None:
    assert run(["inspect", str(tiny_bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert run(["inspect", str(tiny_bundle / "model.onnx")]) == 0
    assert "Conv" in capsys.readouterr().out


def test_bench_compares_files(capsys: Capture, tiny_bundle: Path) -> None:
    assert (
        run(
            [
                "bench",
                str(tiny_bundle),
                "--against",
                str(tiny_bundle / "model.onnx"),
                "--seconds",
                "0.1",
                "--json",
            ]
        )
        == 0
    )
    own, other = json.loads(capsys.readouterr().out)
    assert own["ratio_to_bundle"] == 1.0
    assert own["rounds"] == other["rounds"] >= 20
    assert own["median_ms"] > 0


def test_bench_refuses_a_file_that_is_no_model(capsys: Capture, tmp_path: Path, tiny_bundle: Path) -> None:
    (tmp_path / "other.onnx").write_bytes(b"not a model")
    assert run(["bench", str(tiny_bundle), "--against", "other.onnx"]) == 1
    assert "error: " in capsys.readouterr().err


def test_the_bundle_keeps_the_rules_of_its_target(capsys: Capture, tiny_bundle: Path) -> None:
    assert run(["targets", "check", str(tiny_bundle / "model.onnx"), "--target", "ort-cpu"]) == 0
    assert run(["targets", "check", str(tiny_bundle / "model.onnx"), "--target", "onnx-int8"]) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for another process")
@pytest.mark.parametrize(
    ("how", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGKILL, -signal.SIGKILL, marks=pytest.mark.sweep),
    ],
)
def test_an_interrupted_build_goes_on_where_it_stopped(
    how: signal.Signals, code: int, tmp_path: Path, repository: Path, tiny_bundle: Path
) -> None:
    command = [sys.executable, "-m", "mixport.cli.program", *TINY, "--out", "out"]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A background job of a shell inherits an ignored SIGINT, and Python then installs no handler.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )
    deadline = time.monotonic() + 120
    while (
        not list(tmp_path.glob("calib_cache/quantized/*"))
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert not (tmp_path / "out").exists()
    if how is signal.SIGINT:
        assert "hint: the same command goes on where it stopped" in errors
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert [
        line
        for line in again.stderr.splitlines()
        if line.startswith("quantize: ") and line.endswith("(from the cache)")
    ]
    assert (tmp_path / "out" / "model.onnx").read_bytes() == (tiny_bundle / "model.onnx").read_bytes()
    assert not list(tmp_path.glob("calib_cache/.tmp/*"))
