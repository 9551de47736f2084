"""A target is honoured or refused: each field that changes arithmetic or storage, alone and together, in a
build that validates and fits its own target.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from mixport.cli.program import run
from mixport.records.targets import shipped_targets

pytestmark = pytest.mark.e2e

Capture = pytest.CaptureFixture[str]

CHANGES = {
    "power-of-two": {'form = "float32"': 'form = "power-of-two"'},
    "per-tensor": {'granularity = "per-channel"': 'granularity = "per-tensor"'},
    "int8": {'storage = "uint8"': 'storage = "int8"'},
    "symmetric": {'storage = "uint8"': 'storage = "int8"', 'zero_point = "any"': 'zero_point = "zero"'},
}
CHANGES["all"] = {old: new for one in CHANGES.values() for old, new in one.items()}
CHANGES["own-units"] = {"opset_int2 = 25": 'opset_int2 = 25\nmoves = "own-units"'}
"""Not among all: movement around tables, which powers of two need more of, is of bare codes."""

WITHOUT_PAIR_LIMIT = {"pair_limit = 32767": ""}
"""Products of two int8 activations have no safe form below it."""


def target(folder: Path, *, base: str, name: str, changes: dict[str, str]) -> Path:
    text = shipped_targets()[base].read_text(encoding="utf-8")
    for old, new in changes.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def check(file: Path, rules: Path, capsys: Capture) -> list[dict[str, Any]]:
    """Rules that a file breaks, as `mixport targets check` says."""
    code = run(["targets", "check", str(file), "--target", str(rules), "--json"])
    found = json.loads(capsys.readouterr().out)
    broken = [one for one in found["checks"] if one["what"] != "fits"]
    assert code == (3 if broken else 0)
    return broken


def build(model: str, rules: Path, folder: Path, capsys: Capture, *words: str) -> dict[str, Any]:
    command = ["build", model, "--target", str(rules), "--calib", "noise", "--images", "16", "--json"]
    options = ["--validation-images", "4", "--cache", str(folder / "cache"), "--out", str(folder / "out")]
    code = run([*command, *options, *words])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        *((name, "tests.models:tiny") for name in CHANGES),
        ("all", "tests.models:transformer"),
        *(
            pytest.param(name, "tests.models:transformer", marks=pytest.mark.sweep)
            for name in CHANGES
            if name not in {"all", "own-units"}
        ),
    ],
)
def test_a_target_is_honoured(name: str, model: str, tmp_path: Path, capsys: Capture) -> None:
    changes = dict(CHANGES[name])
    if model == "tests.models:transformer" and "int8" in "".join(changes.values()):
        changes |= WITHOUT_PAIR_LIMIT
    rules = target(tmp_path, base="ort-cpu", name=name, changes=changes)
    found = build(model, rules, tmp_path, capsys, "--iters", "0")
    assert found["validation"]["verdict"] == "exact"
    assert check(tmp_path / "out" / "model.onnx", rules, capsys) == []


def test_movement_around_tables_cannot_be_units_and_is_refused(tmp_path: Path, capsys: Capture) -> None:
    rules = target(tmp_path, base="ort-cpu", name="own-units", changes=CHANGES["own-units"])
    words = ["--calib", "noise", "--images", "16", "--iters", "0", "--validation-images", "4"]
    cache = ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    assert run(["build", "tests.models:transformer", "--target", str(rules), *words, *cache]) == 1
    assert "graph.moves 'own-units' does not have what the model needs" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["power-of-two", "per-tensor"])
def test_learned_codes_keep_the_grid(name: str, tmp_path: Path, capsys: Capture) -> None:
    rules = target(tmp_path, base="ort-cpu", name=name, changes=CHANGES[name])
    found = build("tests.models:tiny", rules, tmp_path, capsys, "--scheme", "w4a4", "--iters", "5")
    assert found["validation"]["verdict"] == "exact"
    assert check(tmp_path / "out" / "model.onnx", rules, capsys) == []
    assert "weight scales kept as calibrated" in {one["what"] for one in found["decisions"]}


@pytest.mark.parametrize(
    ("name", "header"), [("onnx-opset13", (13, 7)), ("onnx-opset17", (17, 8)), ("onnx-int8", (21, 10))]
)
@pytest.mark.parametrize("model", ["tests.models:tiny", "tests.models:transformer"])
def test_a_file_has_the_header_of_its_target_and_nothing_newer(
    name: str, header: tuple[int, int], model: str, tmp_path: Path, capsys: Capture
) -> None:
    found = build(model, shipped_targets()[name], tmp_path, capsys, "--scheme", "w8a8")
    assert found["validation"]["verdict"] == "exact"
    file = onnx.load(tmp_path / "out" / "model.onnx")
    assert (file.opset_import[0].version, file.ir_version) == header
    assert (found["graph"]["opset"], found["graph"]["ir_version"]) == header
    onnx.checker.check_model(file, full_check=True)
    transformer = model == "tests.models:transformer"
    expected = "1.16.3" if name != "onnx-int8" else "1.20.0" if transformer else "1.18.0"
    assert found["oldest_onnxruntime"] == expected
    assert f"onnxruntime from <b>{expected}</b>" in (tmp_path / "out" / "report.html").read_text()
    assert run(["inspect", str(tmp_path / "out")]) == 0
    assert f"oldest onnxruntime known to give the same codes: {expected} (" in capsys.readouterr().out
    names = [node.name for node in file.graph.node]
    tensors = {output for node in file.graph.node for output in node.output}
    tensors |= {one.name for one in (*file.graph.input, *file.graph.initializer)}
    assert all(names) and len(set(names)) == len(names) and not tensors & set(names)


def test_a_file_for_another_target_is_told_apart(tmp_path: Path, capsys: Capture) -> None:
    plain = target(tmp_path, base="ort-cpu", name="plain", changes={})
    build("tests.models:tiny", plain, tmp_path, capsys, "--iters", "0")
    for name, changes in CHANGES.items():
        rules = target(tmp_path, base="ort-cpu", name=name, changes=changes)
        assert check(tmp_path / "out" / "model.onnx", rules, capsys), name


def test_int8_codes_are_int8_in_the_file(tmp_path: Path, capsys: Capture) -> None:
    rules = target(tmp_path, base="ort-cpu", name="int8", changes=CHANGES["int8"] | WITHOUT_PAIR_LIMIT)
    build("tests.models:transformer", rules, tmp_path, capsys, "--iters", "0")
    model = onnx.load(tmp_path / "out" / "model.onnx")
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    points = [node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert {kinds[point] for point in points if point in kinds} <= {
        onnx.TensorProto.INT8,
        onnx.TensorProto.INT16,
    }


def test_an_operator_that_the_target_lacks_is_refused_by_name(tmp_path: Path, capsys: Capture) -> None:
    rules = target(tmp_path, base="ort-cpu", name="no-add", changes={'"Add", ': ""})
    words = ["build", "builtin:cifar10-resnet20", "--target", str(rules), "--calib", "noise", "--images", "8"]
    assert run([*words, "--iters", "0", "--cache", str(tmp_path / "c"), "--out", str(tmp_path / "o")]) == 1
    error = capsys.readouterr().err
    assert "target no-add: operators.integer does not hold what the model needs: " in error
    assert "lower" not in error, "refused before any work"
    assert "integer Add, allowed Conv" in error
    assert "add the operator to the target's [operators] integer" in error
    assert not (tmp_path / "o").exists()


def test_products_of_int8_activations_are_refused_where_pairs_could_saturate(
    tmp_path: Path, capsys: Capture
) -> None:
    rules = target(tmp_path, base="ort-cpu", name="int8", changes=CHANGES["int8"])
    words = ["build", "tests.models:transformer", "--target", str(rules), "--calib", "noise"]
    assert run([*words, "--images", "8", "--iters", "0", "--cache", str(tmp_path / "c")]) == 1
    error = capsys.readouterr().err
    assert "target int8: activations.storage int8 with accumulator.pair_limit 32767: " in error
    assert "hint: a target with storage uint8" in error


@pytest.mark.sweep
@pytest.mark.parametrize("model", ["builtin:cifar10-resnet20", "timm:mobilenetv2_100"])
@pytest.mark.parametrize("name", CHANGES)
def test_real_architectures(name: str, model: str, tmp_path: Path, capsys: Capture) -> None:
    rules = target(tmp_path, base="onnx-int8", name=name, changes=CHANGES[name])
    words = ["--random-weights", "--input-size", "64"] if model.startswith("timm:") else []
    found = build(model, rules, tmp_path, capsys, "--iters", "0", *words)
    assert found["validation"]["verdict"] == "exact"
    assert check(tmp_path / "out" / "model.onnx", rules, capsys) == []
