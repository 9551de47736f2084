"""Whole commands with calibration images that a tiny generator draws."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mixport.cli.program import run

pytestmark = pytest.mark.e2e

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny generator, a class list, and a cache that the tests of this file share."""
    from tests.diffusion import tiny_stable_diffusion

    folder = tmp_path_factory.mktemp("drawn")
    tiny_stable_diffusion(folder / "generator")
    (folder / "classes.json").write_text('["cat", "dog", "ship", "truck"]', encoding="utf-8")
    return folder


@pytest.fixture
def options(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What every command here is told; the working directory is an empty folder."""
    monkeypatch.chdir(tmp_path)
    drawing = [
        "--generator",
        str(workplace / "generator"),
        "--gen-steps",
        "1",
        "--gen-batch",
        "4",
        "--device",
        "cpu",
    ]
    return [
        "tests.models:tiny",
        "--model-arg",
        "classes=4",
        "--classes",
        str(workplace / "classes.json"),
        *drawing,
        "--cache",
        str(workplace / "cache"),
    ]


def build(capsys: Capture, options: list[str], *words: str) -> tuple[dict[str, Any], str]:
    """The manifest and stderr of a build."""
    assert (
        run(["build", *options, "--iters", "0", "--validation-images", "4", "--out", "out", *words, "--json"])
        == 0
    )
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def test_a_build_says_what_drew_its_images(capsys: Capture, options: list[str], workplace: Path) -> None:
    manifest, errors = build(capsys, options, "--images", "14")
    found = manifest["calibration"]
    assert (found["method"], found["images"], found["generator"]) == (
        "mixup",
        14,
        str(workplace / "generator"),
    )
    details = found["generator_details"]
    assert (details["pipeline"], details["steps"], details["size"], details["device"]) == (
        "StableDiffusionPipeline",
        1,
        [16, 16],
        "cpu",
    )
    assert re.fullmatch("[0-9a-f]{64}", details["weights_sha256"])
    assert found["prompts"] == {
        "strategy": "mixup", "classes": 4, "classes_per_prompt": 2, "template": None, "pairing": "balanced",
        "label_text": "name",
    }  # fmt: skip
    assert found["filters"] is None
    assert "plan" not in errors.split(), "with --json only the notes of the stages"
    report = Path("out/report.html").read_text(encoding="utf-8")
    assert report.count('src="data:image/png;base64,') == 12
    assert len(re.findall(r"<figcaption>A photo of an? \w+ and an? \w+</figcaption>", report)) == 12
    assert len(report) < 300_000


def test_the_plan_comes_first_and_is_true(capsys: Capture, options: list[str], workplace: Path) -> None:
    assert run(["calib", "generate", *options, "--images", "8", "--seed", "5", "--quiet"]) == 0
    capsys.readouterr()
    words = ["--images", "10", "--seed", "5", "--validation-images", "4", "--out", "out", "--scheme", "w8a8"]
    assert run(["build", *options, *words]) == 0
    errors = capsys.readouterr().err
    plan = errors[errors.index("plan") : errors.index("calibrate ...")]
    for expected in (
        "model        tests.models:tiny",
        "32x32 pixels, mean 0.5 0.5 0.5",
        "w8a8, first and last layer 8 bits",
        "10 drawn images, prompts: mixup, 2 of 4 classes each, balanced",
        (
            "device cpu, scheduler DPMSolverMultistepScheduler, steps 1, guidance 3.5, size 16x16, dtype "
            "float32, batch 4"
        ),
        "4 will be drawn, in whole batches of 4",
        f"8 of them are in {workplace / 'cache'} already",
        "every code on 4 calibration images (native); no top-1 without --eval",
        "bundle       out",
    ):
        assert expected in plan, expected
    assert run(["build", *options, *words, "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_the_cache_is_listed_shown_drawn_verified_and_pruned(
    capsys: Capture, options: list[str], workplace: Path
) -> None:
    cache = ["--cache", str(workplace / "own"), "--json"]
    assert (
        run(["calib", "generate", *options[:-1], *cache[1:], "--images", "6", "--keep-energy", "0.75"]) == 0
    )
    made = json.loads(capsys.readouterr().out)
    assert run(["calib", "list", *cache]) == 0
    sets = {one["key"]: one for one in json.loads(capsys.readouterr().out)}
    assert {one["images"] for one in sets.values()} == {6, 8}, "the set and the pool that it was chosen from"
    assert sets[made["key"]]["generator"] == str(workplace / "generator")

    assert run(["calib", "show", made["key"][:12], *cache]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["filters"]["drawn"], shown["filters"]["dropped_by_energy"]) == (8, 2)
    assert len(shown["first_prompts"]) == 6
    assert all(text.startswith("A photo of a") for text in shown["first_prompts"])
    assert run(["calib", "show", made["key"][:12], *cache[:-1]]) == 0
    assert "generator: pipeline" in capsys.readouterr().out

    assert run(["calib", "sheet", made["key"][:12], *cache]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 6
    sheet = np.asarray(Image.open("sheet.png"))
    assert sheet.shape[1] == 28 + 6 * 96 + 5 * 14 + 28
    assert run(["calib", "sheet", shown["drawn"][:12], *cache]) == 1, "drawn images are no set"
    capsys.readouterr()

    assert run(["calib", "verify", *cache]) == 0
    assert json.loads(capsys.readouterr().out) == {"entries": 3, "damaged": {}}
    shard = next((workplace / "own" / "drawn").glob("*/*.zip"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert run(["calib", "verify", *cache]) == 3
    assert list(json.loads(capsys.readouterr().out)["damaged"]) == [f"drawn/{shown['drawn']}"]
    assert run(["calib", "verify", made["key"], *cache]) == 3, "a set's key covers what it was made from"
    capsys.readouterr()

    assert run(["calib", "prune", "--keep-gb", "0", "--yes", *cache]) == 0
    assert len(json.loads(capsys.readouterr().out)["removed"]) == 3
    assert run(["calib", "verify", *cache]) == 0
    assert json.loads(capsys.readouterr().out) == {"entries": 0, "damaged": {}}


def test_real_images_stay_out_of_the_report(
    capsys: Capture, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("few.npz", images=np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8))
    words = [
        "--calib",
        "images:few.npz",
        "--images",
        "8",
        "--iters",
        "0",
        "--out",
        "out",
        "--cache",
        str(workplace / "cache"),
    ]
    assert run(["build", "tests.models:tiny", *words]) == 0
    errors = capsys.readouterr().err
    assert "5 real images from few.npz (8 were asked for)" in errors
    assert "calibration: 8 images were asked for, few.npz has 5" in errors
    assert "data:image" not in Path("out/report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "code", "message", "hint"),
    [
        (["--generator", "nowhere"], 1, "unknown generator 'nowhere'", "--generator builtin"),
        (
            ["--classes", "two.json"],
            1,
            "two.json has 2 names, and tests.models:tiny has 4 outputs",
            "--classes with the names of this",
        ),
        (["--classes", "none.json"], 1, "none.json is empty", "a JSON list of names"),
        (["--classes", "twins.json"], 2, "read the same in a prompt", "rename one"),
        (
            ["--label-text", "gloss"],
            2,
            "--label-text gloss needs the meaning of every class",
            "--classes FILE.json",
        ),
        (["--gen-scheduler", "NoSuchScheduler"], 2, "NoSuchScheduler", ""),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    words: list[str], code: int, message: str, hint: str, capsys: Capture, options: list[str], tmp_path: Path
) -> None:
    (tmp_path / "two.json").write_text('["cat", "dog"]', encoding="utf-8")
    (tmp_path / "none.json").write_text("[]", encoding="utf-8")
    (tmp_path / "twins.json").write_text('["cat", "Cat", "dog", "ship"]', encoding="utf-8")
    for command in (["build", "--out", "out"], ["calib", "generate"]):
        assert run([*command, *options, *words, "--cache", "cache"]) == code
        errors = capsys.readouterr().err
        assert message in errors
        assert f"hint: {hint}" in errors
    assert not (tmp_path / "out").exists()
