from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from mixport.calibration.preview import Preview
from mixport.model.float_model import FloatModel
from mixport.pipeline.announcement import announce
from mixport.pipeline.build_plan import resolve
from mixport.pipeline.options.build_options import BuildOptions
from mixport.records.calibration_set import Preprocessing

MODEL = FloatModel(
    module=nn.Identity(),
    name="small",
    source="tests:small",
    sha256="ab" * 32,
    preprocessing=Preprocessing(size=(32, 24), mean=(0.5, 0.25, 0), std=(1, 1, 1)),
    class_names=("cat", "dog", "ship"),
    glosses=("a", "b", "c"),
    input_shape=(1, 3, 32, 24),
)


def plan(
    values: dict[str, object],
    *,
    model: FloatModel = MODEL,
    images: int | None = None,
    cached: int | None = 0,
    labelled: int | None = None,
    batch: int | None = 64,
    to_draw: int | None = 448,
) -> dict[str, str]:
    """Lines of a plan by name; those without a name join the one above."""
    options = BuildOptions.of({"device": "cpu", **values})
    settled = resolve(options)
    recipe = settled.recipe(model)
    made = announce(
        settled,
        model=model,
        recipe=recipe,
        preview=Preview(
            images=images or recipe.images,
            cached=cached,
            pool=4100,
            batch=batch,
            to_draw=to_draw,
            generator=recipe.generator,
        ),
        labelled=labelled,
        folders=[Path("dist") / name for name in options.target],
    )
    found: dict[str, str] = {}
    last = ""
    for name, text in made.lines:
        last = name or last
        found[last] = f"{found[last]}; {text}" if last in found else text
    assert made.text().startswith("plan\n  model        tests:small")
    assert len(made.text().splitlines()) == len(made.lines) + 1
    return found


def test_a_default_build() -> None:
    assert plan({}, cached=100) == {
        "model": "tests:small (its own weights), 3 class names",
        "input": "32x24 pixels, mean 0.5 0.25 0, std 1 1 1",
        "scheme": "w4a8, first and last layer 8 bits (brecq), seed 0",
        "rounding": "learned unit by unit, 500 steps each (mixport), device cpu",
        "target": "ort-cpu",
        "calibration": "512 drawn images, prompts: mixup, 3 of 3 classes each, "
        "balanced; generator: builtin, device "
        "cpu; "
        "448 will be drawn, in whole batches of 64; 100 of them are in calib_cache already",
        "compare": "every code on 256 calibration images (native); no top-1 without --eval",
        "gates": "mismatches==0",
        "bundle": "dist/ort-cpu",
    }


def test_every_setting_of_the_drawing_shows() -> None:
    text = plan(
        {
            "calib": "mixup",
            "classes_per_prompt": 3,
            "pairing": "far",
            "label_text": "gloss",
            "generator": "owner/model",
            "gen_revision": "v2",
            "gen_scheduler": "DDIMScheduler",
            "gen_steps": 7,
            "gen_guidance": 3.5,
            "gen_negative": "text",
            "gen_size": "64x32",
            "gen_dtype": "bfloat16",
            "gen_batch": 4,
            "gen_safety_checker": True,
            "keep_energy": 0.5,
            "keep_statistics": 0.25,
            "template": "oil painting of {classes}",
        },
        cached=512,
        to_draw=0,
    )["calibration"]
    assert text == (
        "512 drawn images, prompts: mixup, 3 of 3 classes each, far, with meanings, template 'oil "
        "painting of {classes}'; "
        "generator: owner/model, device cpu, revision v2, scheduler DDIMScheduler, steps 7, "
        "guidance 3.5, negative prompt text, "
        "size 64x32, dtype bfloat16, batch 4, safety checker on; filters: of 4100 drawn images, keep "
        "the best 50% by energy, "
        "then the best 25% by statistics; "
        "all of them are in calib_cache already"
    )


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"calib": "noise", "images": 9}, "9 images of noise; none of them is in calib_cache yet"),
        (
            {"calib": "single"},
            (
                "512 drawn images, prompts: single, one class each; generator: builtin, device cpu; 448 "
                "will be drawn, in whole"
            ),
        ),
        (
            {"calib": "genq"},
            "512 drawn images, prompts: genq, an adjective and a class each; generator: builtin",
        ),
    ],
)
def test_other_methods(values: dict[str, object], text: str) -> None:
    assert plan(values)["calibration"].startswith(text)


@pytest.mark.parametrize(
    ("batch", "to_draw", "text"),
    [
        (64, 64, "; 64 will be drawn, in whole batches of 64; none of them"),
        (64, 0, "device cpu; none of them"),
        (64, None, "; 4160 will be drawn, in whole batches of 64, less what is in the cache; none of them"),
        (None, None, "; 4100 or more will be drawn, in whole batches; none of them"),
    ],
)
def test_more_is_drawn_than_was_asked_for(batch: int | None, to_draw: int | None, text: str) -> None:
    assert text in plan({"images": 3}, batch=batch, to_draw=to_draw)["calibration"]


def test_real_images_are_counted_and_not_said_to_be_cached() -> None:
    assert plan({"calib": "images:photos"}, cached=None)["calibration"] == "512 real images from photos"
    fewer = plan({"calib": "images:photos"}, images=5, cached=None)
    assert fewer["calibration"] == "5 real images from photos (512 were asked for)"
    assert fewer["compare"].startswith("every code on 5 calibration images")


def test_assumed_preprocessing_is_marked() -> None:
    text = plan({}, model=replace(MODEL, assumed=("mean", "std")))["input"]
    assert text == (
        "32x24 pixels, mean 0.5 0.25 0 (assumed), std 1 1 1 (assumed); the model does not state what "
        "is assumed: --mean, --std"
    )


def test_what_is_compared_with_labelled_images() -> None:
    found = plan(
        {"eval": "photos", "gate": ["top1_drop<=1", "mismatches==0"], "validation_images": 400}, labelled=40
    )
    assert found["compare"] == "every code on 40 labelled images of photos (native); top-1 on 40 images"
    assert found["gates"] == "top1_drop<=1, mismatches==0"


def test_fewer_calibration_images_than_compared() -> None:
    assert plan({"images": 16})["compare"].startswith("every code on 16 calibration images")


def test_several_targets_and_other_weights() -> None:
    found = plan(
        {"target": ["ort-cpu", "onnx-int8"], "weights": "w.safetensors", "scheme": "w8a8", "edge_bits": 7}
    )
    assert found["target"] == "ort-cpu, onnx-int8"
    assert found["bundle"] == "dist/ort-cpu, dist/onnx-int8"
    assert found["model"] == "tests:small (w.safetensors), 3 class names"
    assert found["scheme"].startswith("w8a8, first and last layer 7 bits")
    assert plan({"random_weights": True})["model"].startswith("tests:small (random weights)")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"iters": 0}, "to nearest"),
        ({"scheme": "w8a8"}, "to nearest"),
        ({"scheme": "w8a8", "iters": 9}, "to nearest: 8-bit weights and activations are not learned"),
        ({"scheme": "w2a4", "device": "cpu"}, "learned unit by unit, 2000 steps each (mixport), device cpu"),
        ({"iters": 1}, "learned unit by unit, 1 step each (mixport), device cpu"),
        (
            {"mlp_reconstruction": True},
            "learned unit by unit, 500 steps each (mixport), device cpu; MLPs with ReLU for GELU before",
        ),
    ],
)
def test_how_weights_are_rounded(values: dict[str, object], text: str) -> None:
    assert plan(values)["rounding"] == text
