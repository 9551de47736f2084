"""Whole commands on bad input: exit code, message, hint, and nothing left behind."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mixport.cli.program import run
from tests.models import tiny

pytestmark = pytest.mark.e2e

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = "tests.models:tiny"


@dataclass(frozen=True, kw_only=True)
class Answer:
    code: int
    stdout: str
    stderr: str


class Sandbox:
    """A working folder, and the command line run in it."""

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.capture = capture

    def run(self, *words: str) -> Answer:
        code = run(words)
        captured = self.capture.readouterr()
        return Answer(code=code, stdout=captured.out, stderr=captured.err)

    def build(self, *words: str) -> Answer:
        return self.run(*build_words(*words))


def build_words(*words: str) -> list[str]:
    options = [] if "--calib" in words else ["--calib", "noise"]
    return [
        "build",
        *words,
        *options,
        "--images",
        "4",
        "--iters",
        "0",
        "--validation-images",
        "2",
        "--out",
        "out",
    ]


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Sandbox:
    monkeypatch.chdir(tmp_path)
    return Sandbox(tmp_path, capsys)


def assert_refused(sandbox: Sandbox, answer: Answer, *messages: str, code: int = 1) -> None:
    """The exit code, one error with every message and a hint, an empty stdout, no bundle, no half-written
    entry.
    """
    assert answer.code == code, answer.stderr
    assert answer.stdout == ""
    errors = [line for line in answer.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, answer.stderr
    for message in messages:
        assert message in errors[0]
    assert "\nhint: " in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not (sandbox.folder / "out").exists()
    leftovers = [path for path in (sandbox.folder / "calib_cache" / ".tmp").glob("*")]
    assert leftovers == []
    assert [path.name for path in sandbox.folder.iterdir() if path.name.startswith(".")] == []


class Payload:
    """Unpickling this writes a file."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (Path("code-was-run"),))


def test_missing_weights(sandbox: Sandbox) -> None:
    assert_refused(sandbox, sandbox.build(TINY, "--weights", "absent.safetensors"), "absent.safetensors")


def test_truncated_weights(sandbox: Sandbox) -> None:
    whole = sandbox.folder / "whole.safetensors"
    save_file(tiny().state_dict(), whole)
    (sandbox.folder / "cut.safetensors").write_bytes(whole.read_bytes()[:-100])
    assert_refused(sandbox, sandbox.build(TINY, "--weights", "cut.safetensors"), "cut.safetensors")


def test_a_header_that_claims_too_much(sandbox: Sandbox) -> None:
    (sandbox.folder / "huge.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    assert_refused(sandbox, sandbox.build(TINY, "--weights", "huge.safetensors"), "huge.safetensors")


@pytest.mark.parametrize("protocol", ["torch", "plain"])
def test_a_pickle_that_would_run_code(sandbox: Sandbox, protocol: str) -> None:
    path = sandbox.folder / "evil.pth"
    if protocol == "torch":
        torch.save({"weight": Payload()}, path)
    else:
        path.write_bytes(pickle.dumps(Payload()))
    assert_refused(sandbox, sandbox.build(TINY, "--weights", "evil.pth"), "evil.pth")
    assert not (sandbox.folder / "code-was-run").exists()


def test_a_pth_of_plain_tensors_is_read(sandbox: Sandbox) -> None:
    torch.save(tiny().state_dict(), sandbox.folder / "plain.pth")
    answer = sandbox.build(TINY, "--weights", "plain.pth")
    assert answer.code == 0, answer.stderr


def test_shapes_that_do_not_match(sandbox: Sandbox) -> None:
    save_file(tiny(classes=7).state_dict(), sandbox.folder / "seven.safetensors")
    assert_refused(
        sandbox, sandbox.build(TINY, "--weights", "seven.safetensors"), "seven.safetensors", "head"
    )


def test_weights_of_another_model(sandbox: Sandbox) -> None:
    save_file({"foo.weight": torch.zeros(3)}, sandbox.folder / "other.safetensors")
    assert_refused(sandbox, sandbox.build(TINY, "--weights", "other.safetensors"), "other.safetensors")


def test_weights_that_are_not_numbers(sandbox: Sandbox) -> None:
    assert_refused(sandbox, sandbox.build("tests.models:with_nan"), "stem.0.weight")


def test_weights_of_a_file_that_are_not_numbers(sandbox: Sandbox) -> None:
    state = tiny().state_dict()
    state["head.bias"][3] = float("inf")
    save_file(state, sandbox.folder / "inf.safetensors")
    assert_refused(sandbox, sandbox.build(TINY, "--weights", "inf.safetensors"), "head.bias")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("builtin:cifar10-resnet21", "cifar10-resnet21"),
        ("timm:resnet1e9", "resnet1e9"),
        ("tests.models:absent", "absent"),
        ("absent.package:factory", "absent"),
        ("tests.models:not_a_module", "dict"),
        ("resnet18", "resnet18"),
        ("absent.pt2", "absent.pt2"),
    ],
)
def test_an_unknown_model(sandbox: Sandbox, model: str, message: str) -> None:
    assert_refused(sandbox, sandbox.build(model), message)


def test_a_program_that_is_no_program(sandbox: Sandbox) -> None:
    (sandbox.folder / "noise.pt2").write_bytes(b"PK\x03\x04 not an archive")
    assert_refused(sandbox, sandbox.build("noise.pt2"), "noise.pt2")


def test_a_program_with_a_pickle_that_would_run_code(sandbox: Sandbox) -> None:
    with zipfile.ZipFile(sandbox.folder / "evil.pt2", "w") as archive:
        for name in ("archive/data.pkl", "archive/data/sample_inputs/model.pt", "archive/models/model.json"):
            archive.writestr(name, pickle.dumps(Payload()))
    assert_refused(sandbox, sandbox.build("evil.pt2"), "evil.pt2")
    assert not (sandbox.folder / "code-was-run").exists()


@pytest.mark.parametrize("model", ["tests.models:branching", "tests.models:spectral"])
def test_an_unsupported_operator(sandbox: Sandbox, model: str) -> None:
    assert_refused(sandbox, sandbox.build(model))


def test_a_missing_image_folder(sandbox: Sandbox) -> None:
    assert_refused(sandbox, sandbox.build(TINY, "--calib", "images:absent"), "absent")


def test_an_empty_image_folder(sandbox: Sandbox) -> None:
    (sandbox.folder / "empty").mkdir()
    assert_refused(sandbox, sandbox.build(TINY, "--calib", "images:empty"), "empty")


def test_a_corrupt_image(sandbox: Sandbox) -> None:
    folder = sandbox.folder / "pictures"
    folder.mkdir()
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(
        stream, format="PNG"
    )
    (folder / "good.png").write_bytes(stream.getvalue())
    (folder / "cut.png").write_bytes(stream.getvalue()[:1000])
    assert_refused(sandbox, sandbox.build(TINY, "--calib", "images:pictures"), "cut.png")


def test_an_archive_with_pickled_images(sandbox: Sandbox) -> None:
    np.savez(sandbox.folder / "evil.npz", images=np.array([Payload()], dtype=object))
    assert_refused(sandbox, sandbox.build(TINY, "--calib", "images:evil.npz"), "evil.npz")
    assert not (sandbox.folder / "code-was-run").exists()


def test_labels_that_are_no_classes(sandbox: Sandbox) -> None:
    np.savez(sandbox.folder / "eval.npz", images=np.zeros((2, 32, 32, 3), np.uint8), labels=np.array([0, 10]))
    answer = sandbox.build(TINY, "--eval", "eval.npz")
    assert_refused(sandbox, answer, "labels go from 0 to 10")


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        (["--target", "absent"], "unknown target 'absent'", 1),
        (["--scheme", "w9a8"], "--scheme is 'w9a8'", 2),
        (["--scheme", "auto:1XB"], "--scheme is 'auto:1XB'", 2),
        (["--calib", "mixup"], "--calib mixup needs class names", 2),
        (["--calib", "distill"], "not part of this version yet", 2),
        (["--calib", "pictures"], "--calib is 'pictures'", 2),
        (["--gate", "speed>=2"], "unknown metric speed", 2),
        (["--runtime", "wasmer"], "unknown runtime 'wasmer'", 1),
        (["--config", "absent.toml"], "absent.toml", 1),
        (["--classes", "absent.json"], "absent.json", 1),
        (["--eval", "absent.npz"], "absent.npz", 1),
    ],
)
def test_an_unknown_name(sandbox: Sandbox, words: list[str], message: str, code: int) -> None:
    assert_refused(sandbox, sandbox.build(TINY, *words), message, code=code)


def test_an_output_folder_that_is_not_a_bundle_stays_as_it_is(sandbox: Sandbox) -> None:
    out = sandbox.folder / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    answer = sandbox.build(TINY)
    assert answer.code == 1
    assert "is not a mixport bundle" in answer.stderr
    assert "hint: choose another folder with --out DIR" in answer.stderr
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]
    # It was refused before the work, not after it.
    assert not (sandbox.folder / "calib_cache" / "quantized").exists()


@pytest.mark.parametrize("limit", [2_000, 20_000])
@pytest.mark.sweep
def test_a_disk_without_room(sandbox: Sandbox, limit: int) -> None:
    # A limit on the size of files fails the same writes as a full disk, and needs no privileges. It holds for
    # a whole process.
    done = subprocess.run(
        [sys.executable, "-m", "mixport.cli.program", *build_words(TINY)],
        capture_output=True,
        text=True,
        cwd=sandbox.folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert_refused(
        sandbox, Answer(code=done.returncode, stdout=done.stdout, stderr=done.stderr), "cannot be written"
    )
    assert sandbox.build(TINY).code == 0


def test_errors_in_json_mode_are_one_document(sandbox: Sandbox) -> None:
    answer = sandbox.build(TINY, "--weights", "absent.safetensors", "--json")
    assert answer.code == 1
    assert json.loads(answer.stdout)["error"]["exit_code"] == 1


@pytest.mark.parametrize("command", ["validate", "inspect", "bench"])
def test_a_folder_that_is_no_bundle(sandbox: Sandbox, command: str) -> None:
    (sandbox.folder / "empty").mkdir()
    assert_refused(sandbox, sandbox.run(command, "empty"), "empty")
    assert_refused(sandbox, sandbox.run(command, "absent"), "absent")
