from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from mixport.model.float_model import FloatModel, load_model
from mixport.pipeline import keys
from mixport.pipeline.build_plan import resolve
from mixport.pipeline.keys import (
    LOWER_CODE,
    QUANTIZE_CODE,
    float_logits_key,
    lowered_key,
    model_key,
    quantized_key,
    unit_key,
)
from mixport.pipeline.options.build_options import BuildOptions
from mixport.records.calibration_set import CalibrationSet
from mixport.records.choices.algorithms import Algorithm
from mixport.records.choices.scheme import Scheme
from mixport.records.targets import load_target

CALIBRATION = CalibrationSet(
    images_path=Path("images.npy"), count=4, method="noise", recipe_key="a" * 64, content_sha256="b" * 64
)


@pytest.fixture(scope="module")
def model() -> FloatModel:
    return load_model("tests.models:tiny")


def key(**changes: object) -> str:
    values: dict[str, object] = {
        "model": "m",
        "calibration": CALIBRATION,
        "target": load_target("ort-cpu"),
        "scheme": Scheme.parse("w4a8"),
        **chosen(),
    }
    return quantized_key(**{**values, **changes})  # type: ignore[arg-type]


def chosen(**options: object) -> dict[str, object]:
    plan = resolve(BuildOptions.of({"calib": "noise", **options}))
    return {"algorithm": plan.algorithm, "reconstruction": plan.reconstruction}


def test_equal_inputs_give_equal_keys(model: FloatModel) -> None:
    assert key() == key()
    assert model_key(model) == model_key(load_model("tests.models:tiny"))


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "n"},
        {"calibration": replace(CALIBRATION, content_sha256="c" * 64)},
        {"target": load_target("onnx-int8")},
        {"scheme": Scheme.parse("w8a8")},
        {"scheme": Scheme.parse("w4a8", edge_bits=7)},
        {"scheme": Scheme.parse("w4a8", edge_convention="qdrop")},
        chosen(seed=1),
        chosen(iters=7),
        chosen(iters=0),
        chosen(mlp_reconstruction=True),
    ],
)
def test_everything_that_decides_the_integers_is_in_the_key(changes: dict[str, object]) -> None:
    assert key(**changes) != key()


def test_where_the_images_lie_is_not_in_the_key() -> None:
    assert key(calibration=replace(CALIBRATION, images_path=Path("/elsewhere/images.npy"))) == key()


def test_equal_weights_in_another_structure_are_another_model(model: FloatModel) -> None:
    other = load_model("tests.models:tiny")
    stem = other.module.get_submodule("stem.0")
    assert isinstance(stem, nn.Conv2d)
    stem.stride = (1, 1)
    assert other.sha256 == model.sha256
    assert model_key(other) != model_key(model)


def test_preprocessing_is_part_of_the_model(model: FloatModel) -> None:
    assert model_key(
        replace(model, preprocessing=replace(model.preprocessing, mean=(0.0, 0.0, 0.0)))
    ) != model_key(model)


def test_later_stages_depend_on_earlier_ones() -> None:
    target = load_target("ort-cpu")
    assert lowered_key(quantized="a", target=target) != lowered_key(quantized="b", target=target)
    assert float_logits_key(model="a", images_sha256="x") != float_logits_key(model="a", images_sha256="y")


def test_mlps_left_alone_are_not_in_the_key_of_a_recipe_that_leaves_them_alone() -> None:
    assert key(**chosen(mlp_reconstruction=False)) == key()
    aphq = {"reconstruction": "aphq", "scheme": "w4a4"}
    assert key(**chosen(**aphq)) != key(**chosen(**aphq, mlp_reconstruction=False))


def test_every_part_of_a_build_has_its_own_place() -> None:
    assert (
        len(
            {
                unit_key(quantized=quantized, place=place)
                for quantized in "ab"
                for place in (0, 1, "mlp-0", "mlp-1", "0")
            }
        )
        == 10
    )


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package's code, which the keys are taken from."""
    copy = tmp_path / "mixport"
    shutil.copytree(keys._PACKAGE, copy, ignore=lambda _, names: [n for n in names if n == "__pycache__"])
    monkeypatch.setattr(keys, "_PACKAGE", copy)
    return copy


def edit(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8") + "\n# edited\n", encoding="utf-8")


@pytest.mark.parametrize(
    "name", ["quantize/quantizer.py", "model/run.py", "arithmetic/integer.py", "records/choices/scheme.py"]
)
def test_code_that_decides_integers_counts(package: Path, name: str) -> None:
    before = key()
    edit(package / name)
    assert key() != before


@pytest.mark.parametrize(
    "name",
    ["cli/commands/build.py", "pipeline/announcement.py", "release/report/page.py", "validate/inspect.py"],
)
def test_code_that_decides_no_result_does_not_count(package: Path, name: str) -> None:
    target = load_target("ort-cpu")
    before = key(), lowered_key(quantized="a", target=target)
    edit(package / name)
    assert (key(), lowered_key(quantized="a", target=target)) == before


def test_code_of_lower_counts_for_the_file_alone(package: Path) -> None:
    target = load_target("ort-cpu")
    integers, file = key(), lowered_key(quantized="a", target=target)
    edit(package / "lower/lowering.py")
    assert key() == integers
    assert lowered_key(quantized="a", target=target) != file


@pytest.mark.parametrize(("entry", "folders"), [("quantize", QUANTIZE_CODE), ("lower", LOWER_CODE)])
def test_what_a_stage_imports_is_in_its_key(entry: str, folders: tuple[str, ...]) -> None:
    imported = {
        name.split(".")[1]
        for path in (keys._PACKAGE / entry).rglob("*.py")
        for name in re.findall(r"^\s*from (mixport\.[\w.]+) import", path.read_text(encoding="utf-8"), re.M)
    }
    assert imported <= set(folders)


def test_code_of_an_algorithm_from_elsewhere_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_algorithm.py").write_text("def choose(): ...\n", encoding="utf-8")
    own = Algorithm(name="own", title="", entry="own_algorithm:choose")
    before = key(algorithm=own, reconstruction=None)
    edit(tmp_path / "own_algorithm.py")
    assert key(algorithm=own, reconstruction=None) != before


def test_the_number_of_threads_counts_where_something_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    nearest = key(**chosen(iters=0))
    learned = key()
    monkeypatch.setattr("torch.get_num_threads", lambda: 77)
    assert key(**chosen(iters=0)) == nearest
    assert key() != learned


def test_arguments_of_the_factory_are_part_of_the_model(model: FloatModel) -> None:
    keys = {
        model_key(replace(model, origin=origin))
        for origin in ("[]", "[('mode', 'reflect')]", "[('mode', 'edge')]")
    }
    assert len(keys) == 3
