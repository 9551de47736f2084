from __future__ import annotations

import json
import shutil
from pathlib import Path

import diffusers
import diffusers.utils.logging
import pytest
import torch
import transformers.utils.logging
from safetensors.torch import load_file, save_file

from mixport.calibration.generator.open_pipeline import check_lengths, open_pipeline
from mixport.calibration.generator.request import resolve_request
from mixport.records.errors import BadInputError, BadOptionError
from tests.diffusion import LENGTH
from tests.unit.calibration.conftest import prompt_recipe, settings


def opened(folder: Path, cache: Path, **changes: object):
    return open_pipeline(resolve_request(prompt_recipe(), settings(folder, **changes), cache=cache))


@pytest.fixture
def copy(tmp_path: Path, tiny_pipeline: Path) -> Path:
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "copy"))


def rename(folder: Path, **changes: object) -> None:
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), **changes}))


def test_the_pipeline_is_ready_to_draw(tmp_path: Path, tiny_pipeline: Path) -> None:
    found = opened(tiny_pipeline, tmp_path)
    assert type(found.pipe).__name__ == "StableDiffusionPipeline"
    assert found.pipe.unet.dtype == torch.float32
    assert found.scheduler["class"] == "DPMSolverMultistepScheduler"
    assert "prompt_embeds" in found.arguments


def test_the_dtype_is_the_one_asked_for(tmp_path: Path, tiny_pipeline: Path) -> None:
    assert opened(tiny_pipeline, tmp_path, dtype="bfloat16").pipe.unet.dtype == torch.bfloat16


def test_loading_says_nothing_and_leaves_the_libraries_as_they_were(
    tmp_path: Path, tiny_pipeline: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    opened(tiny_pipeline, tmp_path)
    assert capfd.readouterr() == ("", "")
    assert [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries] == before


def test_a_scheduler_by_name_takes_over_the_configuration(tmp_path: Path, tiny_pipeline: Path) -> None:
    found = opened(tiny_pipeline, tmp_path, scheduler="DDIMScheduler")
    assert type(found.pipe.scheduler).__name__ == found.scheduler["class"] == "DDIMScheduler"
    assert found.pipe.scheduler.config.num_train_timesteps == 100


@pytest.mark.parametrize(
    "name", ["DPMSolverMultistepSchduler", "dpmsolver", "UNet2DConditionModel", "SchedulerMixin", "__doc__"]
)
def test_an_unknown_scheduler_lists_near_names(tmp_path: Path, tiny_pipeline: Path, name: str) -> None:
    with pytest.raises(BadOptionError, match=f"--gen-scheduler {name} is no scheduler") as caught:
        opened(tiny_pipeline, tmp_path, scheduler=name)
    if name.startswith("DPM"):
        assert "DPMSolverMultistepScheduler" in str(caught.value)


def test_a_safety_checker_that_is_off_is_not_loaded(tmp_path: Path, copy: Path) -> None:
    rename(
        copy,
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        requires_safety_checker=True,
    )
    assert opened(copy, tmp_path).pipe.safety_checker is None


@pytest.mark.parametrize(
    ("class_name", "why"),
    [
        ("StableDiffusionImg2ImgPipeline", "it takes image"),
        ("StableDiffusionInpaintPipeline", "it takes image, mask_image"),
        ("DDPMPipeline", "takes no prompt"),
        ("UNet2DConditionModel", "does not know"),
        ("NoSuchPipeline", "does not know"),
    ],
)
def test_pipelines_that_draw_no_images_from_text(
    tmp_path: Path, copy: Path, class_name: str, why: str
) -> None:
    rename(copy, _class_name=class_name)
    with pytest.raises(BadInputError, match=why):
        opened(copy, tmp_path)


def test_damaged_weights(tmp_path: Path, copy: Path) -> None:
    (copy / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    with pytest.raises(BadInputError, match="cannot be loaded"):
        opened(copy, tmp_path)


@pytest.mark.parametrize(
    ("component", "names"),
    [
        ("unet", r"UNet2DConditionModel: conv_in\.weight"),
        ("text_encoder", r"embeddings\.token_embedding\.weight"),
    ],
)
def test_weights_that_are_missing(tmp_path: Path, copy: Path, component: str, names: str) -> None:
    """The libraries fill them with what memory holds: images would mean nothing, and differ from run to
    run.
    """
    (path,) = (copy / component).glob("*.safetensors")
    kept = {
        name: tensor
        for name, tensor in load_file(path).items()
        if "token_embedding" not in name and name != "conv_in.weight"
    }
    save_file(kept, path, metadata={"format": "pt"})
    with pytest.raises(BadInputError, match=f"lacks weights that its classes need: {names}"):
        opened(copy, tmp_path)


@pytest.mark.parametrize("name", ["VQDiffusionScheduler", "UnCLIPScheduler", "SASolverScheduler"])
def test_a_scheduler_of_another_kind(tmp_path: Path, tiny_pipeline: Path, name: str) -> None:
    with pytest.raises(BadOptionError, match=f"--gen-scheduler {name} cannot take over"):
        opened(tiny_pipeline, tmp_path, scheduler=name)


def test_a_device_that_refuses_the_pipeline(
    tmp_path: Path, tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "to", full)
    with pytest.raises(BadInputError, match="cannot be moved to cpu: CUDA out of memory"):
        opened(tiny_pipeline, tmp_path)


def test_a_missing_configuration(tmp_path: Path, copy: Path) -> None:
    (copy / "vae" / "config.json").unlink()
    with pytest.raises(BadInputError, match="cannot be loaded"):
        opened(copy, tmp_path)


def test_prompts_that_the_text_encoder_cuts_off_are_refused(tmp_path: Path, tiny_pipeline: Path) -> None:
    found = opened(tiny_pipeline, tmp_path)
    fits = "x" * (LENGTH - 2)
    check_lengths(found, [fits, "short"])
    with pytest.raises(
        BadInputError, match=f"has {LENGTH + 1} tokens, the text encoder of .* reads {LENGTH}"
    ):
        check_lengths(found, ["short", fits + "x"])
