"""mixport bench on a real small bundle: what it is compared with, and what it says where that cannot be
made.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mixport.cli.program import run
from mixport.pipeline import stages
from mixport.records.errors import UnsupportedModelError

pytestmark = pytest.mark.e2e

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def bench(capfd: Capture, bundle: Path, cache: Path, *words: str) -> tuple[Any, str]:
    """Run with --json; the one document, and what stderr says."""
    assert run(["bench", str(bundle), *words, "--cache", str(cache), "--seconds", "0.1", "--json"]) == 0
    said = capfd.readouterr()
    return json.loads(said.out), said.err


def changed(bundle: Path, folder: Path, **fields: Any) -> Path:
    """A copy of a bundle whose manifest says something else."""
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").write_text(json.dumps({**manifest, **fields}), encoding="utf-8")
    return folder


def test_the_float_and_the_static_file_are_made_once(
    capfd: Capture, tiny_bundle: Path, tiny_cache: Path
) -> None:
    words = ["--against", "static", "--against", str(tiny_bundle / "model.onnx"), "--against", "float"]
    first, _ = bench(capfd, tiny_bundle, tiny_cache, *words)
    assert [row["name"] for row in first] == [
        str(tiny_bundle),
        "static",
        str(tiny_bundle / "model.onnx"),
        "float",
    ]
    for row in first:
        assert row["ratio_to_bundle"] == pytest.approx(row["median_ms"] / first[0]["median_ms"])
        assert row["bundle_ratio"] == pytest.approx(first[0]["median_ms"] / row["median_ms"])
    again, said = bench(capfd, tiny_bundle, tiny_cache, *words)
    assert [row["size_bytes"] for row in again] == [row["size_bytes"] for row in first]
    for stage in ("float file", "quantize_static file"):
        assert [
            line
            for line in said.splitlines()
            if line.startswith(f"{stage}: ") and line.endswith("(from the cache)")
        ]


def test_a_build_says_how_its_file_compares_with_the_float_model(tiny_bundle: Path) -> None:
    latency = json.loads((tiny_bundle / "manifest.json").read_text(encoding="utf-8"))["latency"]
    assert latency["ratio"] == pytest.approx(latency["model_ms"] / latency["float_ms"])
    assert latency["reason"] == ""
    assert latency["rounds"] >= 7
    for name in ("model", "float"):
        first, third = latency[f"{name}_quartiles_ms"]
        assert 0 < first <= latency[f"{name}_ms"] <= third
    assert "of the float model" in (tiny_bundle / "report.html").read_text(encoding="utf-8")


def test_a_float_model_that_cannot_be_exported_stops_no_build(
    capfd: Capture, tmp_path: Path, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any, **named: Any) -> Path:
        raise UnsupportedModelError("torch's ONNX exporter cannot write the float model: no such operator")

    monkeypatch.setattr(stages, "float_file", fails)
    words = [
        "--calib",
        "noise",
        "--images",
        "16",
        "--iters",
        "0",
        "--validation-images",
        "8",
        "--cache",
        str(tiny_cache),
    ]
    assert run(["build", "tests.models:tiny", *words, "--out", "out"]) == 0
    said = capfd.readouterr()
    assert "latency: the float model is not measured: torch's ONNX exporter cannot write" in said.err
    assert "float not measured" in said.out
    latency = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))["latency"]
    assert latency["reason"] == "torch's ONNX exporter cannot write the float model: no such operator"
    assert (latency["float_ms"], latency["ratio"], latency["slower"]) == (None, None, False)
    assert latency["model_ms"] > 0


def test_the_ratio_is_said_in_words(capfd: Capture, tiny_bundle: Path, tiny_cache: Path) -> None:
    assert (
        run(["bench", str(tiny_bundle), "--against", "float", "--cache", str(tiny_cache), "--seconds", "0.1"])
        == 0
    )
    said = capfd.readouterr().out
    assert "bundle / file" in said and "file / bundle" in said
    (line,) = [line for line in said.splitlines() if line.startswith("bundle / float on native: ")]
    ratio = float(line.removeprefix("bundle / float on native: ").split(",")[0])
    assert ("faster" if ratio < 1 else "slower") in line.split("(")[0]


def test_a_model_that_is_not_here_any_more(
    capfd: Capture, tmp_path: Path, tiny_bundle: Path, tiny_cache: Path
) -> None:
    line = "mixport build no_such_package:factory --calib noise"
    bundle = changed(tiny_bundle, tmp_path / "moved", reproduce=line)
    assert run(["bench", str(bundle), "--against", "float", "--cache", str(tiny_cache)]) == 1
    said = capfd.readouterr().err
    assert "cannot be made again: MODEL no_such_package:factory" in said
    assert (
        f"hint: type this in the folder of the build ({line}), or give a file of your own: mixport bench"
        in said
    )


def test_weights_that_are_gone(capfd: Capture, tmp_path: Path, tiny_bundle: Path, tiny_cache: Path) -> None:
    line = "mixport build tests.models:tiny --weights gone.safetensors --calib noise"
    bundle = changed(tiny_bundle, tmp_path / "moved", reproduce=line)
    assert run(["bench", str(bundle), "--against", "static", "--cache", str(tiny_cache)]) == 1
    assert "gone.safetensors" in capfd.readouterr().err


def test_weights_that_are_others_now(
    capfd: Capture, tmp_path: Path, tiny_bundle: Path, tiny_cache: Path
) -> None:
    line = "mixport build tests.models:tiny --calib noise --model-arg classes=7"
    bundle = changed(tiny_bundle, tmp_path / "other", reproduce=line)
    assert run(["bench", str(bundle), "--against", "float", "--cache", str(tiny_cache)]) == 1
    assert "has other weights than those that" in capfd.readouterr().err


def test_a_batch_of_two_is_refused(capfd: Capture, tmp_path: Path, tiny_bundle: Path) -> None:
    import onnx
    import onnx.parser

    text = (
        '<ir_version: 10, opset_import: ["" : 21]> g (float[2,3,4,4] x) => (float[2,3,4,4] y) { y = Relu(x) }'
    )
    onnx.save(onnx.parser.parse_model(text), "two.onnx")
    assert run(["bench", str(tiny_bundle), "--against", "two.onnx"]) == 1
    assert "allowed batch 1 or symbolic" in capfd.readouterr().err


def test_a_profile_puts_every_node_to_its_module(capfd: Capture, tiny_bundle: Path, tiny_cache: Path) -> None:
    document, _ = bench(capfd, tiny_bundle, tiny_cache, "--profile")
    assert [row["name"] for row in document["latency"]] == [str(tiny_bundle)]
    found = document["profile"]
    assert found["unattributed_share"] == 0.0
    for table in ("operators", "modules", "repeated_modules"):
        assert sum(row["share"] for row in found[table]) == pytest.approx(1.0)
        assert sum(row["ms"] for row in found[table]) == pytest.approx(found["total_ms"])
    assert {node["module"] for node in found["nodes"] if node["op"] == "QLinearConv"} == {
        "stem.0", "branch.0", "depthwise.0", "gate.reduce", "gate.expand",
    }  # fmt: skip
    assert [node["module"] for node in found["nodes"] if node["op"] == "QGemm"] == ["head"]
    integer = sum(row["ms"] for row in found["operators"] if row["op"] in {"QLinearConv", "QGemm"})
    assert found["integer_compute_share"] == pytest.approx(integer / found["total_ms"])
    assert found["other_share"] == pytest.approx(1.0 - found["integer_compute_share"])


def test_the_tables_of_a_profile_end_with_the_rest(capfd: Capture, tiny_bundle: Path) -> None:
    assert run(["bench", str(tiny_bundle), "--profile", "--top", "1", "--seconds", "0.1"]) == 0
    said = capfd.readouterr().out
    assert "not attributed to a module 0.0%" in said
    for title in ("operator ", "module of the float model "):
        (place,) = [index for index, line in enumerate(said.splitlines()) if line.startswith(title)]
        assert said.splitlines()[place + 2].startswith("(") and "more)" in said.splitlines()[place + 2]
