from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mixport.calibration.generator.pipeline_folder import read_pipeline_folder
from mixport.records.errors import BadInputError


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


def test_a_tiny_autoencoder_says_its_size_too(folder: Path) -> None:
    """Without it the batch would be that of the largest images: one."""
    (folder / "vae" / "config.json").write_text('{"decoder_block_out_channels": [64, 64, 64]}')
    assert read_pipeline_folder(folder).own_size() == (32, 32)


def test_files_that_loading_ignores_do_not_count(folder: Path) -> None:
    before = set(read_pipeline_folder(folder).loaded_files())
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"a variant")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "README.md").write_text("words")
    assert set(read_pipeline_folder(folder).loaded_files()) == before


@pytest.mark.parametrize(
    "content",
    [
        None,
        "{",
        "[]",
        "3",
        '{"unet": ["diffusers", "UNet2DConditionModel"]}',
        '{"_class_name": ["mine", "Mine"]}',
    ],
)
def test_what_is_no_pipeline_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "model_index.json").write_text(content)
    with pytest.raises(BadInputError, match=r"model_index\.json") as caught:
        read_pipeline_folder(tmp_path)
    assert "--generator" in str(caught.value.hint)


@pytest.mark.parametrize(
    "value",
    [
        ["os", "system"],
        ["mine", "Unet"],
        ["diffusers.pipelines", "Unet"],
        ["../evil", "Unet"],
        ["diffusers"],
        [1, 2],
    ],
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


@pytest.mark.parametrize(
    "name", ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors", "weights.ckpt"]
)
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


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
@pytest.mark.parametrize(
    "elsewhere", ["evil.bin", "evil.safetensors", "../vae/diffusion_pytorch_model.safetensors", 5]
)
def test_shards_that_no_key_would_cover_are_refused(folder: Path, component: str, elsewhere: object) -> None:
    """diffusers and transformers load whatever the index names, pickles too."""
    (weights,) = (folder / component).glob("*.safetensors")
    shard = weights.with_name(f"{weights.stem}-00001-of-00001.safetensors")
    weights.rename(shard)
    index = folder / component / f"{weights.name}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": shard.name}}))
    assert f"{component}/{shard.name}" in read_pipeline_folder(folder).loaded_files()
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": shard.name, "b": elsewhere}}))
    with pytest.raises(BadInputError, match=r"index\.json takes weights from"):
        read_pipeline_folder(folder).loaded_files()


def test_weights_that_a_configuration_names_are_refused(folder: Path) -> None:
    (folder / "text_encoder" / "other.safetensors").write_bytes(b"")
    change(folder, "text_encoder/config.json", transformers_weights="other.safetensors")
    with pytest.raises(BadInputError, match=r"config\.json takes weights from 'other\.safetensors'"):
        read_pipeline_folder(folder).loaded_files()


@pytest.mark.parametrize(
    "more",
    [
        {"_attn_implementation": "kernels-community/flash-attn"},
        {"text_config": {"attn_implementation": "someone/kernel"}},
    ],
)
def test_compiled_code_of_the_hub_is_refused(folder: Path, more: dict[str, Any]) -> None:
    change(folder, "text_encoder/config.json", _attn_implementation="sdpa")
    assert read_pipeline_folder(folder).loaded_files()
    change(folder, "text_encoder/config.json", **more)
    with pytest.raises(BadInputError, match="kernel of the hub"):
        read_pipeline_folder(folder).loaded_files()


def test_a_scheduler_may_hold_infinity_and_may_not_be_a_tower(folder: Path) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text('{"a": 1e999, "b": -Infinity, "c": 0.5}')
    assert read_pipeline_folder(folder).scheduler()[1] == {"a": "1e999", "b": "-Infinity", "c": 0.5}
    path.write_text('{"a": ' + "[" * 500 + "]" * 500 + "}")
    with pytest.raises(BadInputError, match="nested more than 32 deep"):
        read_pipeline_folder(folder).scheduler()
