"""Whole builds whose rounding is learned: what the bundle says, the same bytes twice, awkward models without
a mismatch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixport.cli.program import run

pytestmark = pytest.mark.e2e

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("images.npz", images=np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8))


def build(capsys: Capture, model: str, *words: str) -> tuple[dict[str, Any], str]:
    """The manifest and stderr of a w2a4 build, which must be exact."""
    few = ["--calib", "images:images.npz", "--images", "12", "--validation-images", "4", "--device", "cpu"]
    assert run(["build", model, "--scheme", "w2a4", *few, "--out", "out", *words, "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["validation"]["verdict"] == "exact"
    assert sum(runtime["mismatches"] for runtime in document["validation"]["runtimes"]) == 0
    return document, captured.err


@pytest.mark.sweep
def test_the_same_command_gives_the_same_bytes_and_another_seed_others(capsys: Capture) -> None:
    files: list[bytes] = []
    for number, seed in enumerate(("0", "0", "1")):
        document, _ = build(
            capsys, "tests.models:tiny", "--iters", "30", "--cache", f"cache{number}", "--seed", seed
        )
        files.append(Path("out/model.onnx").read_bytes())
        assert document["reconstruction"]["seed"] == int(seed)
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_the_bundle_says_what_was_learned(capsys: Capture) -> None:
    document, _ = build(capsys, "tests.models:tiny", "--iters", "8")
    found = document["reconstruction"]
    assert {name: found[name] for name in ("preset", "iters", "images", "seed", "device")} == {
        "preset": "mixport", "iters": 8, "images": 12, "seed": 0, "device": "cpu",
    }  # fmt: skip
    layers = [name for unit in found["units"] for name in unit["layers"]]
    narrow = [
        site["name"] for site in document["sites"] if site["kind"] == "weight" and site["weight_bits"] == 2
    ]
    assert set(layers) <= set(narrow) and layers
    assert all(unit["error_after"] <= unit["error_before"] for unit in found["units"])
    assert "--iters 8" in document["reproduce"] and "--device cpu" in document["reproduce"]
    assert "error of each unit before and after reconstruction" in Path("out/report.html").read_text(
        encoding="utf-8"
    )
    assert run(["inspect", "out"]) == 0
    shown = capsys.readouterr().out
    assert "error before" in shown
    assert all(unit["name"] in shown for unit in found["units"])
    assert run(["inspect", "out/model.onnx"]) == 0
    assert "error before" not in capsys.readouterr().out
    assert run(["validate", "out", "--quiet"]) == 0


@pytest.mark.sweep
def test_mlps_with_relu_are_in_the_bundle(capsys: Capture) -> None:
    document, _ = build(capsys, "tests.reconstruction:mlps", "--iters", "2", "--mlp-reconstruction")
    found = document["reconstruction"]
    assert [mlp["name"] for mlp in found["mlps"]] == ["blocks.0", "blocks.1"] and found["mlp_iters"] == 8
    assert all(mlp["layers"] for mlp in found["mlps"])
    assert " --mlp-reconstruction" in document["reproduce"]
    assert [
        one["where"] for one in document["decisions"] if one["what"].startswith("ReLU in the place of GELU")
    ] == [
        "blocks.0",
        "blocks.1",
    ]
    assert "ReLU in the place of GELU: 8 steps each" in Path("out/report.html").read_text(encoding="utf-8")
    assert run(["inspect", "out"]) == 0
    assert "error with ReLU" in capsys.readouterr().out
    other, _ = build(capsys, "tests.reconstruction:mlps", "--iters", "2")
    assert (
        other["reconstruction"]["mlps"] == []
        and other["files"]["model.onnx"] != document["files"]["model.onnx"]
    )


@pytest.mark.sweep
def test_another_number_of_steps_is_another_build(capsys: Capture) -> None:
    build(capsys, "tests.models:tiny", "--iters", "0")
    nearest = Path("out/model.onnx").read_bytes()
    assert json.loads(Path("out/manifest.json").read_text(encoding="utf-8"))["reconstruction"] is None
    _, errors = build(capsys, "tests.models:tiny", "--iters", "3")
    assert Path("out/model.onnx").read_bytes() != nearest
    assert not [
        line
        for line in errors.splitlines()
        if line.startswith("quantize: ") and line.endswith("(from the cache)")
    ]


@pytest.mark.parametrize(
    "model",
    [
        "tests.models:transformer",
        "tests.reconstruction:dead",
        *(
            pytest.param(model, marks=pytest.mark.sweep)
            for model in (
                "tests.reconstruction:windows",
                "tests.reconstruction:without_biases",
                "tests.reconstruction:huge",
                "tests.structures:batch_of_one",
                "tests.structures:boolean_mask",
                "tests.structures:cross_attention",
                "tests.structures:slices_written_in_place",
            )
        ),
    ],
)
def test_awkward_models_are_exact(model: str, capsys: Capture) -> None:
    document, _ = build(capsys, model, "--iters", "5")
    assert document["reconstruction"]["units"]


@pytest.mark.parametrize("images", ["1", pytest.param("3", marks=pytest.mark.sweep)])
def test_a_handful_of_images_is_enough(images: str, capsys: Capture) -> None:
    document, _ = build(capsys, "tests.models:tiny", "--iters", "5", "--images", images)
    assert document["reconstruction"]["images"] == int(images)


def test_a_target_with_a_fixed_batch_and_plain_storage_works(capsys: Capture) -> None:
    document, _ = build(capsys, "tests.models:tiny", "--iters", "5", "--target", "onnx-int8")
    assert document["target"]["name"] == "onnx-int8"
    assert any(unit["layers"] for unit in document["reconstruction"]["units"])


def test_a_device_that_is_not_here_is_told_before_any_work(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    few = ["--calib", "images:images.npz", "--scheme", "w2a4", "--device", "cuda", "--out", "out"]
    assert run(["build", "tests.models:tiny", *few]) == 2
    errors = capsys.readouterr().err
    assert "torch finds no CUDA device here" in errors and "hint: --device cpu" in errors
    assert "load" not in errors
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["images.npz"]
