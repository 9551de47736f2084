from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mixport.calibration.generator import request as module
from mixport.calibration.generator.request import DrawingRequest, resolve_request
from mixport.records.errors import BadOptionError
from tests.unit.calibration.conftest import CLASSES, prompt_recipe, settings

Resolve = Callable[..., DrawingRequest]


@pytest.fixture
def resolve(tmp_path: Path, tiny_pipeline: Path) -> Resolve:
    def resolving(
        folder: Path | None = None, prompts: dict[str, object] | None = None, **changes: object
    ) -> DrawingRequest:
        return resolve_request(
            prompt_recipe(**prompts or {}),
            settings(folder or tiny_pipeline, **changes),
            cache=tmp_path / "cache",
        )

    return resolving


def test_every_default_is_settled(resolve: Resolve) -> None:
    found = resolve(steps=None, guidance=None, batch=None)
    assert (found.steps, found.guidance, found.dtype, found.device, found.size) == (
        25,
        3.5,
        "float32",
        "cpu",
        None,
    )
    assert found.batch == 64
    assert found.asked["scheduler"]["class"] == "DPMSolverMultistepScheduler"
    assert len(found.asked["files"]) == 10


def test_a_negative_prompt_without_guidance_is_refused(
    resolve: Resolve, tiny_pipeline: Path, tmp_path: Path
) -> None:
    few_steps = tmp_path / "sd-turbo"  # its own guidance is 0
    few_steps.symlink_to(tiny_pipeline)
    with pytest.raises(
        BadOptionError, match=r"--gen-negative has no effect without guidance, and .*sd-turbo draws with 0"
    ) as raised:
        resolve(folder=few_steps, guidance=None, negative_prompt="blurry")
    assert "--gen-guidance above 1" in str(raised.value.hint)
    assert resolve(folder=few_steps, guidance=4.0, negative_prompt="blurry").guided


@pytest.mark.parametrize(
    ("size", "batch"), [((64, 64), 64), ((128, 128), 16), ((256, 256), 4), ((512, 512), 1)]
)
def test_large_images_are_drawn_in_small_batches_on_a_cpu(
    resolve: Resolve, size: tuple[int, int], batch: int
) -> None:
    assert resolve(size=size, batch=None).batch == batch


def test_the_size_of_the_pipeline_itself_is_no_other_size(resolve: Resolve) -> None:
    own = resolve()
    size = own.generator.folder.own_size()
    assert size is not None
    typed = resolve(size=size)
    assert (typed.size, typed.key) == (None, own.key)
    assert resolve(size=(size[0], 2 * size[1])).key != own.key


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 2},
        {"guidance": 2.5},
        {"scheduler": "DDIMScheduler"},
        {"negative_prompt": "blurry"},
        {"size": (32, 32)},
        {"dtype": "bfloat16"},
        {"batch": 5},
        {"prompts": {"seed": 1}},
        {"prompts": {"classes_per_prompt": 3}},
        {"prompts": {"template": "a picture of {classes}"}},
        {"prompts": {"pairing": "uniform"}},
        {"prompts": {"class_names": (*CLASSES, "horse")}},
        {"prompts": {"label_text": "gloss", "glosses": CLASSES}},
        {"prompts": {"strategy": "single"}},
    ],
    ids=str,
)
def test_the_key_covers_what_is_asked(resolve: Resolve, changes: dict[str, object]) -> None:
    assert resolve(**changes).key != resolve().key


def test_the_key_covers_the_versions(resolve: Resolve, monkeypatch: pytest.MonkeyPatch) -> None:
    before = resolve().key
    monkeypatch.setattr(module, "version", lambda package: "0.0" if package == "torch" else "1.0")
    assert resolve().key != before


@pytest.mark.parametrize(
    "name",
    [
        "unet/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
    ],
)
def test_the_key_covers_the_files_that_are_loaded(
    resolve: Resolve, tmp_path: Path, tiny_pipeline: Path, name: str
) -> None:
    copy = Path(shutil.copytree(tiny_pipeline, tmp_path / "copy"))
    assert resolve(copy).key == resolve().key
    data = (copy / name).read_bytes()
    # A space more at the end of JSON, another bit at the end of weights.
    (copy / name).write_bytes(data + b" " if name.endswith(".json") else data[:-1] + bytes([data[-1] ^ 1]))
    assert resolve(copy).key != resolve().key


def test_naming_the_scheduler_that_is_there_changes_nothing(resolve: Resolve) -> None:
    assert resolve(scheduler="DPMSolverMultistepScheduler").key == resolve().key


def test_a_safety_checker_that_is_not_there_changes_nothing(resolve: Resolve) -> None:
    assert resolve(safety_checker=True).key == resolve().key


@pytest.mark.parametrize("changes", [{"steps": 0}, {"batch": 0}, {"size": (0, 16)}], ids=str)
def test_values_out_of_range_are_refused(resolve: Resolve, changes: dict[str, object]) -> None:
    with pytest.raises(BadOptionError, match="--gen-"):
        resolve(**changes)


@pytest.mark.parametrize(
    ("there", "asked", "device", "dtype"),
    [(True, "auto", "cuda", "float16"), (False, "auto", "cpu", "float32")],
)
def test_the_device_is_found(
    resolve: Resolve, monkeypatch: pytest.MonkeyPatch, there: bool, asked: str, device: str, dtype: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: there)
    found = resolve(device=asked)
    assert (found.device, found.dtype) == (device, dtype)


def test_a_device_that_is_not_here(resolve: Resolve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(BadOptionError, match="no CUDA device"):
        resolve(device="cuda")
