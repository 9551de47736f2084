"""Mixed widths under a size budget, whole builds: the file keeps the budget, and the manifest says what was
chosen and why.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from mixport.cli.program import run

pytestmark = pytest.mark.e2e

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("widths-cache")


def words(cache: Path, scheme: str, *, target: str = "ort-cpu") -> list[str]:
    images = cache / "images.npz"
    if not images.is_file():
        np.savez(images, images=np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8))
    model = ["tests.wide_model:wide", "--scheme", scheme, "--target", target, "--calib", f"images:{images}"]
    return [
        "build",
        *model,
        "--images",
        "16",
        "--iters",
        "0",
        "--validation-images",
        "8",
        "--cache",
        str(cache),
        "--out",
        "out",
    ]


def built(capsys: Capture, cache: Path, scheme: str, **options: str) -> dict[str, Any]:
    assert run([*words(cache, scheme, **options), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_file_keeps_the_budget_and_the_manifest_says_why(
    capsys: Capture, cache: Path, tmp_path: Path
) -> None:
    sizes = {bits: built(capsys, cache, f"w{bits}a8")["metrics"]["size_bytes"] for bits in (2, 4)}
    budget = (sizes[2] + sizes[4]) // 2
    document = built(capsys, cache, f"auto:{budget}B")
    assert document["scheme"] == f"auto:{budget}B"
    assert document["validation"]["verdict"] == "exact"
    assert sum(runtime["mismatches"] for runtime in document["validation"]["runtimes"]) == 0
    widths, size = document["widths"], document["metrics"]["size_bytes"]
    assert size == (tmp_path / "out" / "model.onnx").stat().st_size
    assert (
        widths["smallest_bytes"]
        == sizes[2]
        <= size
        <= widths["bound_bytes"]
        <= widths["budget_bytes"]
        == budget
    )
    assert widths["bound_bytes"] - size < 200, "the bound is tight"
    assert widths["fits"] == [2]
    assert widths["loss"] < widths["uniform"]["2"]
    sites = {site["name"]: site for site in document["sites"] if site["kind"] == "weight"}
    free = {layer["name"]: layer["bits"] for layer in widths["layers"]}
    assert {sites[name]["weight_bits"] for name in free} == set(free.values()) > {2}
    for name, site in sites.items():
        assert site["weight_bits"] == free.get(name, 8)
        assert ("within the budget" in site["reason"]) is (name in free)
    types = {
        t.name: onnx.TensorProto.DataType.Name(t.data_type)
        for t in onnx.load("out/model.onnx").graph.initializer
    }
    storage = {2: "INT2", 4: "INT4", 8: "INT8"}
    assert {name: types[f"{name}.weight"] for name in free} == {
        name: storage[bits] for name, bits in free.items()
    }
    assert "Widths chosen under a budget" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert run(["validate", "out", "--quiet"]) == 0


def test_a_budget_with_room_gives_eight_bits(capsys: Capture, cache: Path) -> None:
    document = built(capsys, cache, "auto:1MB:a4")
    assert {layer["bits"] for layer in document["widths"]["layers"]} == {8}
    assert {site["activation_bits"] for site in document["sites"] if site["role"] == "compute"} == {4, 8}


@pytest.mark.parametrize("target", ["ort-cpu", "onnx-int8"])
def test_a_budget_that_nothing_fits_names_what_is_possible(capsys: Capture, cache: Path, target: str) -> None:
    assert run(words(cache, "auto:0.01", target=target)) == 1
    message = capsys.readouterr().err
    assert "--scheme auto:0.01 allows a file of" in message
    assert f"the smallest one possible for target {target} takes" in message
    assert "with 8-bit weights" in message
    hint = next(line for line in message.splitlines() if line.startswith("hint: "))
    assert not Path("out").exists()
    scheme = hint.split("--scheme ")[1].split()[0]
    assert run([*words(cache, scheme, target=target), "--quiet"]) == 0
