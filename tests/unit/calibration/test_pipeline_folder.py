from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mixport.calibration.pipeline_folder import read_pipeline_folder
from mixport.errors import BadInputError


@pytest.fixture
def folder(tmp_path: Path, tiny_pipeline: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "pipeline"))


def change(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_pipeline_describes_itself(folder: Path) -> None:
    found = read_pipeline_folder(folder)
    assert found.class_name == "StableDiffusionPipeline"
    assert found.components["unet"] == ("diffusers", "UNet2DConditionModel")
    assert "safety_checker" not in found.components
    assert found.own_size() == (16, 16)
    assert found.scheduler()[0] == "DPMSolverMultistepScheduler"
    assert set(found.loaded_files()) == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }


def test_files_that_loading_ignores_do_not_count(folder: Path) -> None:
    before = set(read_pipeline_folder(folder).loaded_files())
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"a variant")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "README.md").write_text("words")
    assert set(read_pipeline_folder(folder).loaded_files()) == before


@pytest.mark.parametrize(
    "content", [None, "{", "[]", "3", '{"unet": ["diffusers", "UNet2DConditionModel"]}', '{"_class_name": ["mine", "Mine"]}']
)
def test_what_is_no_pipeline_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "model_index.json").write_text(content)
    with pytest.raises(BadInputError, match=r"model_index\.json") as caught:
        read_pipeline_folder(tmp_path)
    assert "--generator" in str(caught.value.hint)


@pytest.mark.parametrize(
    "value", [["os", "system"], ["mine", "Unet"], ["diffusers.pipelines", "Unet"], ["../evil", "Unet"], ["diffusers"], [1, 2]]
)
def test_classes_of_other_libraries_are_refused(folder: Path, value: list[object]) -> None:
    change(folder, "model_index.json", unet=value)
    with pytest.raises(BadInputError, match="unet"):
        read_pipeline_folder(folder)


def test_a_component_outside_the_folder_is_refused(folder: Path) -> None:
    change(folder, "model_index.json", **{"../vae": ["diffusers", "AutoencoderKL"]})
    with pytest.raises(BadInputError, match=r"\.\./vae"):
        read_pipeline_folder(folder)


def test_modules_of_diffusers_pipelines_are_allowed(folder: Path) -> None:
    change(folder, "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    found = read_pipeline_folder(folder)
    assert found.components["safety_checker"] == ("stable_diffusion", "StableDiffusionSafetyChecker")
    assert "unet/config.json" in found.loaded_files(without=frozenset({"safety_checker"}))
    with pytest.raises(BadInputError, match="safety_checker is missing"):
        found.loaded_files()


def test_an_index_larger_than_the_bound_is_refused(folder: Path) -> None:
    change(folder, "model_index.json", padding="x" * (9 << 20))
    with pytest.raises(BadInputError, match="allowed 8388608"):
        read_pipeline_folder(folder)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors", "weights.ckpt"])
def test_weights_that_are_not_plain_safetensors_are_refused(folder: Path, name: str) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").replace(folder / "unet" / name)
    with pytest.raises(BadInputError, match=name) as caught:
        read_pipeline_folder(folder).loaded_files()
    assert "save_pretrained" in str(caught.value.hint)


def test_code_in_a_component_is_refused(folder: Path) -> None:
    (folder / "unet" / "modeling.py").write_text("raise SystemExit")
    with pytest.raises(BadInputError, match="code of its own"):
        read_pipeline_folder(folder).loaded_files()


def test_a_class_chosen_by_the_folder_may_not_name_code(folder: Path) -> None:
    change(folder, "model_index.json", tokenizer=["transformers", "AutoTokenizer"])
    assert read_pipeline_folder(folder).loaded_files()
    change(folder, "tokenizer/tokenizer_config.json", auto_map={"AutoTokenizer": "mine.Tokenizer"})
    with pytest.raises(BadInputError, match="code of its own"):
        read_pipeline_folder(folder).loaded_files()
