"""Training from whole commands: every method to an exported file, and what is refused on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.numpy import load_file

from mixport.cli.program import run
from mixport.model.float_model import load_model, open_model
from mixport.model.request import ModelRequest

pytestmark = pytest.mark.e2e

TINY = "tests.models:tiny"
METHODS = ("nipq", "symreg", "satnl", "symreg+satnl", "plain")
BUILD = ("--calib", "noise", "--images", "8", "--validation-images", "2")
PATIENCE_S = 120.0

Capture = pytest.CaptureFixture[str]


def write_images(path: Path, *, count: int = 40, largest: int = 9) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, largest + 1, count).astype(np.int64)
    labels[0] = largest
    np.savez_compressed(path, images=rng.integers(0, 256, (count, 32, 32, 3), np.uint8), labels=labels)


class Trainings:
    """One training a method, made when it is first asked for; tests must not change them."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        self.cache = folder / "cache"
        self.data = folder / "data.npz"
        write_images(self.data)

    def words(self, method: str, out: Path) -> list[str]:
        return [
            *("train", TINY, "--method", method, "--data", str(self.data), "--epochs", "2", "--batch", "16"),
            *("--cache", str(self.cache), "--out", str(out)),
        ]

    def folder(self, method: str) -> Path:
        out = self.root / method
        if not out.is_dir():
            assert run([*self.words(method, out), "--quiet"]) == 0
        return out

    def build(self, method: str, *words: str, out: Path) -> int:
        cache = ("--cache", str(self.cache))
        return run(
            ["build", TINY, "--trained", str(self.folder(method)), *BUILD, *cache, *words, "--out", str(out)]
        )


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Trainings:
    return Trainings(tmp_path_factory.mktemp("trainings"))


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def document(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_exported_and_validated(method: str, trainings: Trainings, capsys: Capture) -> None:
    folder = trainings.folder(method)
    record = document(folder / "training.json")
    scheme = [] if method == "nipq" else ["--scheme", "w4a4", "--iters", "0"]
    assert trainings.build(method, *scheme, out=Path("out")) == 0, capsys.readouterr().err
    manifest = document(Path("out/manifest.json"))
    assert manifest["validation"]["verdict"] == "exact"
    entry = manifest["training"]
    assert (entry["method"], entry["epochs"], entry["teacher"]) == (method, 2, None)
    assert entry["taken"] == ("integers" if method == "nipq" else "weights")
    assert entry["data"] == record["data"]
    assert entry["data"]["method"] == "labelled" and entry["data"]["source"] == str(trainings.data)
    assert (entry["data"]["images"], entry["data"]["held_out"], entry["data"]["labels"]) == (39, 1, True)
    assert manifest["reconstruction"] is None
    report = Path("out/report.html").read_text(encoding="utf-8")
    assert f"of a training by <b>{method}</b>" in report
    assert ("rounded to its nearest code" in report) == (entry["taken"] == "weights")
    wanted = {"training.json", "training.svg", "weights.safetensors"}
    if method == "nipq":
        wanted |= {"integers.safetensors", "sites.json"}
        assert entry["budget"] == record["budget"] == "w4a4"
    assert {path.name for path in folder.iterdir()} == wanted
    assert len(record["curve"]) == 2
    assert [one["phase"] for one in record["curve"]] == (
        ["noise", "fine-tune"] if method == "nipq" else [method, method]
    )


def test_the_file_holds_exactly_the_codes_of_the_training(trainings: Trainings) -> None:
    assert trainings.build("nipq", out=Path("out")) == 0
    held = {one.name: numpy_helper.to_array(one) for one in onnx.load("out/model.onnx").graph.initializer}
    tensors = load_file(trainings.folder("nipq") / "integers.safetensors")
    layers = [name.removeprefix("codes/") for name in tensors if name.startswith("codes/")]
    assert len(layers) == 6
    for layer in layers:
        np.testing.assert_array_equal(held[f"{layer}.weight"].astype(np.int8), tensors[f"codes/{layer}"])
        # Some are moved by a few units in the last place, so that float32 requantisation rounds exactly.
        np.testing.assert_allclose(
            held[f"{layer}.weight/scale"], tensors[f"scales/{layer}"], rtol=2.0**-20, atol=0
        )
    sites = document(trainings.folder("nipq") / "sites.json")
    manifest = document(Path("out/manifest.json"))
    own = {one["name"]: one for one in manifest["sites"] if one["kind"] == "activation"}
    assert sites["carriers"].keys() <= own.keys()
    for name, choice in sites["carriers"].items():
        # The range in the manifest is what a function reaches, which may be less.
        assert own[name]["zero_point"] == choice["zero_point"], name
        # That of a table may move by units in the last place, so that every machine gives its entries.
        moved = 2.0**-18 if own[name]["role"] == "table" else 0.0
        assert own[name]["scale"] == pytest.approx(choice["scale"], rel=moved, abs=0.0), name
    assert widths_of(manifest) == {name: one["bits"] for name, one in sites["layers"].items()}


def test_robust_weights_are_what_is_quantised(trainings: Trainings) -> None:
    assert trainings.build("plain", "--scheme", "w8a8", out=Path("out")) == 0
    weights = trainings.folder("plain") / "weights.safetensors"
    with_weights = open_model(ModelRequest(source=TINY, weights=weights))
    found = document(Path("out/manifest.json"))["model"]
    assert found["sha256"] == with_weights.sha256 != load_model(TINY).sha256
    assert found["source"] == document(weights.with_name("training.json"))["model"]["source"] == TINY
    held = {one.name: numpy_helper.to_array(one) for one in onnx.load("out/model.onnx").graph.initializer}
    real = held["head.weight"].astype(np.float32) * held["head.weight/scale"][:, None]
    trained, own = (
        one.module.state_dict()["head.weight"].numpy() for one in (with_weights, load_model(TINY))
    )
    assert np.abs(real - trained).mean() < np.abs(real - own).mean()


def test_weights_of_satnl_keep_their_bound_and_fit_the_model(trainings: Trainings) -> None:
    state = load_file(trainings.folder("satnl") / "weights.safetensors")
    model = load_model(TINY).module
    model.load_state_dict({name: torch.as_tensor(value) for name, value in state.items()}, strict=True)
    (decision,) = document(trainings.folder("satnl") / "training.json")["decisions"]
    low, high = decision["what"].split(" bounded to ")[1].split(" ... ")
    bounded = [
        np.abs(value).max() for name, value in state.items() if value.ndim > 1 and "depthwise" not in name
    ]
    assert len(bounded) == 5 and decision["what"].startswith("weights of 5 layers")
    # Both ends are written with three digits.
    assert max(bounded) <= float(high) * 1.005 and float(low) > 0


def test_nipq_learns_from_the_float_model_where_there_are_no_labels(
    capsys: Capture, trainings: Trainings
) -> None:
    cache = ("--cache", str(trainings.cache))
    words = ["train", TINY, "--data", "noise", "--images", "24", "--epochs", "2", "--batch", "8"]
    assert run([*words, "--budget", "w3a4", "--iters", "2", "--out", "trained", *cache, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["teacher"] == TINY
    assert (found["data"]["method"], found["data"]["labels"]) == ("noise", False)
    assert found["data"]["images"] + found["data"]["held_out"] == 24
    assert all(0.0 <= epoch["held_out"] <= 1.0 for epoch in found["curve"])
    last = found["curve"][-1]["figures"]
    assert last["weight_bits"] <= 3.0 and last["activation_bits"] <= 4.0
    assert run(["build", TINY, "--trained", "trained", *BUILD, *cache, "--out", "out", "--quiet"]) == 0
    manifest = document(Path("out/manifest.json"))
    assert manifest["validation"]["verdict"] == "exact"
    assert (manifest["training"]["teacher"], manifest["training"]["data"]["labels"]) == (TINY, False)


def test_widths_alone_are_taken_and_codes_reconstructed(trainings: Trainings) -> None:
    assert trainings.build("nipq", "--iters", "2", "--quiet", out=Path("out")) == 0
    manifest = document(Path("out/manifest.json"))
    assert manifest["validation"]["verdict"] == "exact"
    assert manifest["training"]["taken"] == "widths"
    assert manifest["reconstruction"]["iters"] == 2
    layers = document(trainings.folder("nipq") / "sites.json")["layers"]
    assert widths_of(manifest) == {name: one["bits"] for name, one in layers.items()}
    held = {one.name: numpy_helper.to_array(one) for one in onnx.load("out/model.onnx").graph.initializer}
    tensors = load_file(trainings.folder("nipq") / "integers.safetensors")
    differ = [
        name
        for name, codes in tensors.items()
        if name.startswith("codes/")
        and not np.array_equal(held[f"{name.removeprefix('codes/')}.weight"].astype(np.int8), codes)
    ]
    assert differ, "codes are chosen anew"


def widths_of(manifest: dict[str, Any]) -> dict[str, int]:
    return {one["name"]: one["weight_bits"] for one in manifest["sites"] if one["kind"] == "weight"}


def test_a_sweep_of_a_robust_weight_writes_table_and_plot(trainings: Trainings, capsys: Capture) -> None:
    folder = trainings.folder("symreg+satnl")
    words = ["--schemes", "w8a8,w4a4", "--calib", "noise", "--images", "8", "--eval", str(trainings.data)]
    cache = ("--cache", str(trainings.cache))
    capsys.readouterr()  # what the training said
    assert run(["sweep", str(folder), *words, *cache, "--out", "swept", "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found == document(Path("swept/sweep.json"))
    assert [(row["scheme"], row["iters"], row["verdict"]) for row in found["rows"]] == [
        ("w8a8", 0, "exact"),
        ("w4a4", 0, "exact"),
    ]
    for row in found["rows"]:
        assert row["size_bytes"] == (Path(row["bundle"]) / "model.onnx").stat().st_size
        manifest = document(Path(row["bundle"]) / "manifest.json")
        assert manifest["training"]["method"] == "symreg+satnl"
        assert manifest["metrics"]["top1_quantized"] == row["top1"] is not None
    plot = Path("swept/sweep.svg").read_text()
    assert "w8a8" in plot and "top-1" in plot and plot.startswith("<?xml")


def test_a_sweep_takes_trained_weights_by_option_too(trainings: Trainings, capsys: Capture) -> None:
    folder = trainings.folder("plain")
    words = ["--schemes", "w4a8", "--calib", "noise", "--images", "8", "--cache", str(trainings.cache)]
    assert run(["sweep", TINY, "--trained", str(folder), *words, "--out", "swept", "--quiet"]) == 0
    (bundle,) = (path for path in Path("swept").iterdir() if path.is_dir())
    assert document(bundle / "manifest.json")["training"]["method"] == "plain"


def test_json_is_one_document(trainings: Trainings, tmp_path: Path, capsys: Capture) -> None:
    capsys.readouterr()
    assert run([*trainings.words("plain", tmp_path / "again"), "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found.pop("path") == str(tmp_path / "again")
    assert found == document(tmp_path / "again" / "training.json")
    assert found["command"].startswith("mixport train tests.models:tiny --method plain ")


def test_the_same_training_again_comes_from_the_cache_to_the_same_bytes(
    trainings: Trainings, tmp_path: Path
) -> None:
    first = trainings.folder("symreg")
    out = tmp_path / "again"
    assert run([*trainings.words("symreg", out), "--quiet"]) == 0
    for name in ("weights.safetensors", "training.svg"):
        assert (out / name).read_bytes() == (first / name).read_bytes()


@pytest.mark.parametrize("budget", ["6.5KB:a4", "9KB", "6MBOP", "9MBOP"])
def test_budgets_of_bytes_and_of_bit_operations_hold_in_the_file(
    budget: str, trainings: Trainings, capsys: Capture
) -> None:
    """Where every activation may have 8 bits, layers read the codes of 8-bit carriers."""
    cache = ("--cache", str(trainings.cache), "--quiet")
    words = ["--data", str(trainings.data), "--epochs", "2", "--batch", "16", "--budget", budget]
    assert run(["train", TINY, *words, *cache, "--out", "trained"]) == 0, capsys.readouterr().err
    figures = document(Path("trained/training.json"))["curve"][-1]["figures"]
    assert run(["build", TINY, "--trained", "trained", *BUILD, *cache, "--out", "out"]) == 0
    manifest = document(Path("out/manifest.json"))
    assert manifest["validation"]["verdict"] == "exact"
    assert widths_of(manifest) == {
        name: one["bits"] for name, one in document(Path("trained/sites.json"))["layers"].items()
    }
    if budget.endswith("BOP"):
        most = float(budget.removesuffix("MBOP"))
        assert most / 2 < figures["gbop"] * 1000 <= most
    else:
        assert Path("out/model.onnx").stat().st_size <= 1000 * float(budget.partition("KB")[0])
        assert figures["activation_bits"] <= (4.0 if budget.endswith(":a4") else 8.0)


def test_widths_and_scales_of_a_training_are_taken_as_a_file_by_hand(trainings: Trainings) -> None:
    sites = trainings.folder("nipq") / "sites.json"
    words = ["--sites", str(sites), "--scheme", "w4a4", "--iters", "0", *BUILD, "--quiet"]
    assert run(["build", TINY, *words, "--cache", str(trainings.cache), "--out", "out"]) == 0
    manifest, given = document(Path("out/manifest.json")), document(sites)
    assert manifest["validation"]["verdict"] == "exact" and manifest["training"] is None
    assert widths_of(manifest) == {name: one["bits"] for name, one in given["layers"].items()}
    held = {one.name: numpy_helper.to_array(one) for one in onnx.load("out/model.onnx").graph.initializer}
    for layer, choice in given["layers"].items():
        np.testing.assert_allclose(
            held[f"{layer}.weight/scale"], np.float32(choice["scale"]), rtol=2.0**-20, atol=0
        )


# Refused.


def refused(words: list[str], capsys: Capture, *messages: str, code: int) -> None:
    """The exit code, one error with every message and a hint, an empty stdout, no folder and no leftovers."""
    capsys.readouterr()
    assert run(words) == code
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, captured.err
    for message in messages:
        assert message in errors[0]
    assert "\nhint: " in captured.err and "Traceback" not in captured.err
    assert captured.out == ""
    assert not Path("out").exists()
    assert [path.name for path in Path().iterdir() if path.name.startswith(".")] == []


def train_words(*words: str) -> list[str]:
    return ["train", TINY, *words, "--epochs", "1", "--out", "out"]


def test_an_empty_data_folder(capsys: Capture) -> None:
    Path("empty").mkdir()
    refused(train_words("--data", "empty"), capsys, "empty", code=1)


def test_missing_data(capsys: Capture) -> None:
    refused(train_words("--data", "absent.npz"), capsys, "absent.npz", code=1)


def test_one_image_alone(capsys: Capture) -> None:
    write_images(Path("one.npz"), count=1)
    refused(train_words("--data", "one.npz"), capsys, "one.npz holds 1 images, allowed 2 or more", code=1)


@pytest.mark.parametrize("method", ["nipq", "plain"])
def test_a_label_outside_the_classes(method: str, capsys: Capture) -> None:
    write_images(Path("wrong.npz"), largest=10)
    words = train_words("--data", "wrong.npz", "--method", method)
    refused(words, capsys, "wrong.npz: image 0 has label 10, allowed 0 to 9", code=1)


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["--method", "plain", "--budget", "w3a4"], ["--budget has no effect with --method plain"]),
        (["--symmetry", "0.5"], ["--symmetry has no effect with --method nipq"]),
        (["--noise-epochs", "2"], ["--noise-epochs is 2, allowed up to --epochs 1"]),
        (["--data", "noise", "--teacher", "none"], ["--teacher none: nothing to learn from"]),
        (["--data", "x.npz", "--label-weight", "0"], ["nothing to learn from x.npz"]),
        (["--data", "noise", "--teacher-weight", "0"], ["nothing to learn from noise"]),
        (["--batch", "0"], ["--batch", "got 0"]),
        (["--lr", "nan"], ["--lr"]),
        (["--ema", "1"], ["--ema"]),
        (["--budget", "many"], ["--budget", "many"]),
        (["--method", "magic"], ["--method"]),
    ],
)
def test_options_that_contradict_themselves(words: list[str], messages: list[str], capsys: Capture) -> None:
    refused(train_words(*words), capsys, *messages, code=2)


def test_a_folder_of_something_else_stays_as_it_is(trainings: Trainings, capsys: Capture) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work")
    words = [*train_words("--data", str(trainings.data), "--method", "plain")[:-1], "mine"]
    refused(words, capsys, "--out mine exists and is not the folder of a training", code=1)
    assert [path.name for path in Path("mine").iterdir()] == ["thesis.txt"]
    shutil.copytree(trainings.folder("plain"), "both")
    Path("both/notes.txt").write_text("mine")
    refused([*words[:-1], "both"], capsys, "--out both holds other files too (notes.txt)", code=1)
    assert Path("both/notes.txt").read_text() == "mine"


def build_words(folder: Path | str, *words: str, model: str = TINY) -> list[str]:
    return ["build", model, "--trained", str(folder), *BUILD, *words, "--out", "out"]


def test_widths_are_the_training_s(trainings: Trainings, capsys: Capture) -> None:
    folder = trainings.folder("nipq")
    for words in (["--scheme", "w4a4"], ["--edge-bits", "4"], ["--reconstruction", "mixport"]):
        message = f"{words[0]} has no effect with --trained"
        refused(build_words(folder, *words), capsys, message, str(folder), code=2)
    Path("widths.json").write_text('{"layers": {"head": {"bits": 4}}}')
    refused(build_words(folder, "--sites", "widths.json"), capsys, "--sites has no effect", code=2)


def test_weights_are_the_training_s(trainings: Trainings, capsys: Capture) -> None:
    folder = trainings.folder("plain")
    words = build_words(folder, "--weights", str(folder / "weights.safetensors"))
    refused(words, capsys, "--weights has no effect with --trained", "the weights of plain", code=2)


@pytest.mark.parametrize(
    ("method", "name"),
    [("nipq", "sites.json"), ("nipq", "integers.safetensors"), ("plain", "weights.safetensors")],
)
def test_a_file_that_was_changed_or_lost(
    method: str, name: str, trainings: Trainings, capsys: Capture
) -> None:
    shutil.copytree(trainings.folder(method), "copy")
    path = Path("copy") / name
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    message = f"{path} is missing or not the file that training.json names"
    refused(build_words("copy"), capsys, message, code=1)
    path.unlink()
    refused(build_words("copy"), capsys, message, code=1)


def test_no_folder_of_a_training(capsys: Capture) -> None:
    refused(build_words("absent"), capsys, "--trained absent is not a folder", code=1)
    Path("plain").mkdir()
    refused(build_words("plain"), capsys, "training.json cannot be read", code=1)
    Path("plain/training.json").write_text('{"method": "nipq"}')
    refused(build_words("plain"), capsys, "plain/training.json: model: Field required", code=1)


@pytest.mark.parametrize(
    "change", [{"scheme": {"weight_bits": 4, "magic": 1}}, {"scheme": {}}, {"model": {"name": "tiny"}}]
)
def test_a_record_that_was_written_by_hand(
    change: dict[str, Any], trainings: Trainings, capsys: Capture
) -> None:
    shutil.copytree(trainings.folder("nipq"), "copy")
    record = document(Path("copy/training.json"))
    Path("copy/training.json").write_text(json.dumps({**record, **change}))
    refused(build_words("copy"), capsys, "copy/training.json", code=1)


def test_other_weights_of_the_model(trainings: Trainings, capsys: Capture) -> None:
    folder = trainings.folder("nipq")
    message = f"was trained from {TINY} with weights"
    weights = str(trainings.folder("plain") / "weights.safetensors")
    refused(build_words(folder, "--weights", weights), capsys, message, code=1)


def test_another_target(trainings: Trainings, capsys: Capture, repository: Path) -> None:
    folder = trainings.folder("nipq")
    text = (repository / "targets" / "ort-cpu.toml").read_text()
    Path("mine.toml").write_text(text.replace("title = ", "# Ours.\ntitle = "))
    refused(
        build_words(folder, "--target", "mine.toml"),
        capsys,
        "has integers for target ort-cpu",
        "mine",
        code=1,
    )


def test_a_sweep_of_one_set_of_widths(trainings: Trainings, capsys: Capture) -> None:
    folder = trainings.folder("nipq")
    message = "was trained for one set of widths (w4a4), which a sweep cannot change"
    refused(["sweep", str(folder), "--out", "out"], capsys, message, code=2)
    Path("empty").mkdir()
    refused(["sweep", "empty", "--out", "out"], capsys, "holds no training.json", code=1)
    both = ["sweep", str(trainings.folder("plain")), "--trained", str(folder), "--out", "out"]
    refused(both, capsys, "--trained", "has no effect with MODEL", code=2)


# Widths by hand.


def by_hand(document: dict[str, Any]) -> list[str]:
    Path("widths.json").write_text(json.dumps(document))
    return ["build", TINY, "--scheme", "w8a8", "--sites", "widths.json", *BUILD, "--out", "out"]


def test_widths_by_hand_stand_in_the_manifest(capsys: Capture) -> None:
    words = by_hand({"layers": {"branch.0": {"bits": 2}, "gate.reduce": {"bits": 4}}, "sites": {}})
    assert run([*words, "--iters", "0", "--quiet"]) == 0, capsys.readouterr().err
    manifest = document(Path("out/manifest.json"))
    assert manifest["validation"]["verdict"] == "exact" and manifest["training"] is None
    bits = widths_of(manifest)
    assert (bits["branch.0"], bits["gate.reduce"], bits["gate.expand"]) == (2, 4, 8)


@pytest.mark.parametrize(
    ("given", "message", "code"),
    [
        ({"layers": {"brunch.0": {"bits": 4}}}, "the model has no layer 'brunch.0' whose width is free", 2),
        ({"sites": {"nowhere": {"bits": 4}}}, "the model has no site 'nowhere' whose width is free", 2),
        ({"layers": {"branch.0": {"bits": 9}}}, "layer branch.0 has 9 bits, allowed 2, 3, 4, 5, 6, 7, 8", 2),
        ({"layers": {"branch.0": {"bits": 1}}}, "widths.json: layers.branch.0.bits", 1),
        ({"layer": {}}, "widths.json: layer: Extra inputs are not permitted", 1),
    ],
)
def test_widths_that_do_not_suit_the_model(
    given: dict[str, Any], message: str, code: int, capsys: Capture
) -> None:
    refused([*by_hand(given), "--iters", "0"], capsys, message, code=code)


# Killed.


@dataclass
class Worker:
    """Starts training processes."""

    process: subprocess.Popen[str]

    def start(self, folder: Path, words: list[str]) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        folder.mkdir(exist_ok=True)
        job = {"folder": str(folder), "words": json.dumps(words), "status": str(folder.with_suffix(".code"))}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def finish(self, folder: Path, words: list[str]) -> None:
        wait_for_the_end(self.start(folder, words))
        status = folder.with_suffix(".code")
        assert status.is_file() and status.read_text() == "0", "see the captured output"


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for_the_end(process: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while is_alive(process):
        assert time.monotonic() < deadline, "the process does not end"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def worker(repository: Path) -> Iterator[Worker]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)}
    command = [sys.executable, "-m", "tests.e2e.train_worker"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=repository
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        yield Worker(process)
        process.stdin.close()


def entries_of(folder: Path) -> set[str]:
    return {path.parent.name for path in (folder / "calib_cache" / "training").glob("*/entry.json")}


def epochs_of(folder: Path) -> int:
    return len(entries_of(folder))


KILLED = {
    "nipq": (["--method", "nipq", "--optimiser", "adam", "--noise-epochs", "2"], 3, 2),
    "robust": (["--method", "symreg+satnl", "--optimiser", "adam", "--ema", "0.5", "--mix", "mixup"], 1, 1),
}
"""Options, after how many of four epochs (of NIPQ in its second phase), and the number of phases."""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("case", KILLED)
def test_killed_within_an_epoch_the_same_command_gives_the_same_bytes(
    case: str, worker: Worker, tmp_path: Path
) -> None:
    options, before, phases = KILLED[case]
    write_images(tmp_path / "data.npz", count=130)
    words = ["train", TINY, *options, "--data", "../data.npz", "--epochs", "4", "--batch", "4"]
    words += ["--out", "trained", "--quiet"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    worker.finish(whole, words)
    assert epochs_of(whole) == phases, "the last one of each phase"
    process = worker.start(broken, words)
    seen: set[str] = set()
    while len(seen) < before and is_alive(process):
        seen |= entries_of(broken)
        time.sleep(0.001)
    os.kill(process, signal.SIGKILL)
    wait_for_the_end(process)
    assert before <= len(seen | entries_of(broken)) < 4, "killed within an epoch"
    assert not (broken / "trained").exists()
    worker.finish(broken, words)
    names = {path.name for path in (whole / "trained").iterdir()}
    assert names == {path.name for path in (broken / "trained").iterdir()}
    for name in names:
        assert (broken / "trained" / name).read_bytes() == (whole / "trained" / name).read_bytes(), name
    assert [path.name for path in broken.iterdir() if path.name.startswith(".")] == []
