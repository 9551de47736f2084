from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mixport.calibration.recipe import CalibrationRecipe, FilterSettings, GeneratorSettings, PromptRecipe
from mixport.pipeline.options.build_options import BuildOptions, command_line
from mixport.pipeline.options.calibration import CalibrationAsked
from mixport.pipeline.options.drawing import DrawOptions
from mixport.records.calibration_set import Preprocessing
from mixport.records.errors import BadOptionError, ExitCode

SMALL = Preprocessing(size=(8, 8), mean=(0, 0, 0), std=(1, 1, 1))
CLASSES = ("cat", "dog", "ship")
GLOSSES = ("a pet that purrs", "a pet that barks", "it floats")

#: A value that is not the default, for every option of drawing.
CHANGED: dict[str, object] = {
    "classes_per_prompt": 3,
    "template": "{classes}",
    "pairing": "uniform",
    "label_text": "gloss",
    "generator": "owner/model",
    "gen_revision": "main",
    "gen_scheduler": "DDIMScheduler",
    "gen_steps": 3,
    "gen_guidance": 2.0,
    "gen_negative": "text",
    "gen_size": (64, 32),
    "gen_dtype": "float16",
    "gen_batch": 4,
    "gen_safety_checker": True,
    "device": "cuda",
    "keep_energy": 0.5,
    "keep_statistics": 0.25,
}


def test_every_option_is_looked_at() -> None:
    assert CHANGED.keys() == DrawOptions.model_fields.keys()


@pytest.mark.parametrize("calib", ["noise", "images:photos"])
@pytest.mark.parametrize("name", [name for name in CHANGED if name != "device"])
def test_an_option_of_drawing_is_refused_where_nothing_is_drawn(name: str, calib: str) -> None:
    with pytest.raises(
        BadOptionError, match=f"--{name.replace('_', '-')} has no effect with --calib {calib}"
    ) as caught:
        BuildOptions.of({"calib": calib, name: CHANGED[name]})
    assert caught.value.exit_code is ExitCode.USAGE
    assert caught.value.hint == f"--calib mixup, or leave --{name.replace('_', '-')} out"


@pytest.mark.parametrize("calib", ["noise", "images:photos"])
def test_defaults_are_no_contradiction(calib: str) -> None:
    options = BuildOptions.of({"calib": calib, "device": "cpu"})
    assert BuildOptions.of(options.model_dump()) == options


@pytest.mark.parametrize(
    "name", [name for name in CHANGED if name not in ("classes_per_prompt", "pairing", "gen_revision")]
)
@pytest.mark.parametrize("calib", ["mixup", "single", "genq"])
def test_it_is_taken_where_images_are_drawn(name: str, calib: str) -> None:
    assert getattr(BuildOptions.of({"calib": calib, name: CHANGED[name]}), name) == CHANGED[name]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"calib": "single", "classes_per_prompt": 2},
            "--classes-per-prompt 2 has no effect with --calib single",
        ),
        (
            {"calib": "genq", "classes_per_prompt": 3},
            "--classes-per-prompt 3 has no effect with --calib genq",
        ),
        ({"calib": "single", "pairing": "far"}, "--pairing far has no effect with --calib single"),
        ({"gen_revision": "main"}, "--gen-revision has no effect with --generator builtin"),
        ({"gen_negative": "text", "gen_guidance": 1.0}, "--gen-negative has no effect with --gen-guidance 1"),
        ({"template": "a photo"}, "template 'a photo' has the fields none"),
        ({"template": ""}, "--template: "),
        ({"classes_per_prompt": 0}, "--classes-per-prompt: .*got 0"),
        ({"pairing": "near"}, "--pairing: .*'balanced', 'uniform' or 'far', got 'near'"),
        ({"label_text": "both"}, "--label-text: .*'name' or 'gloss', got 'both'"),
        ({"gen_steps": 0}, "--gen-steps: .*got 0"),
        ({"gen_guidance": -1}, "--gen-guidance: .*got -1"),
        ({"gen_guidance": "nan"}, "--gen-guidance: "),
        ({"gen_size": "0x8"}, "--gen-size: sides are in pixels"),
        ({"gen_size": "wide"}, "--gen-size: "),
        ({"gen_dtype": "float64"}, "--gen-dtype: .*got 'float64'"),
        ({"gen_batch": 0}, "--gen-batch: .*got 0"),
        ({"gen_batch": 4097}, "--gen-batch: .*4096, got 4097"),
        ({"keep_energy": 0.0}, "--keep-energy: .*got 0"),
        ({"keep_statistics": 1.5}, "--keep-statistics: .*got 1.5"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(values: dict[str, object], message: str) -> None:
    with pytest.raises(BadOptionError, match=message) as caught:
        BuildOptions.of(values)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("given", "size"), [("512", (512, 512)), ("512x256", (512, 256)), (64, (64, 64)), ([32, 16], (32, 16))]
)
def test_the_size_is_one_side_or_two(given: object, size: tuple[int, int]) -> None:
    assert BuildOptions.of({"gen_size": given}).gen_size == size


def test_the_recipe_holds_what_was_asked() -> None:
    options = BuildOptions.of({**CHANGED, "label_text": "name", "images": 9, "seed": 5})
    recipe = options.calibration_asked().recipe(preprocessing=SMALL, class_names=CLASSES, glosses=GLOSSES)
    assert (recipe.method, recipe.source, recipe.images, recipe.seed, recipe.preprocessing) == (
        "mixup",
        None,
        9,
        5,
        SMALL,
    )
    assert recipe.prompts == PromptRecipe(
        strategy="mixup",
        class_names=CLASSES,
        classes_per_prompt=3,
        template="{classes}",
        pairing="uniform",
        label_text="name",
        seed=5,
    )
    assert recipe.generator == GeneratorSettings(
        source="owner/model",
        revision="main",
        scheduler="DDIMScheduler",
        steps=3,
        guidance=2.0,
        negative_prompt="text",
        size=(64, 32),
        dtype="float16",
        safety_checker=True,
        batch=4,
        device="cuda",
    )
    assert recipe.filters == FilterSettings(keep_energy=0.5, keep_statistics=0.25)


def asked(**values: object) -> CalibrationAsked:
    return BuildOptions.of(values).calibration_asked()


@pytest.mark.parametrize(("calib", "together"), [("mixup", 3), ("single", 1), ("genq", 1)])
def test_the_defaults_of_each_method(calib: str, together: int) -> None:
    recipe = asked(calib=calib).recipe(preprocessing=SMALL, class_names=CLASSES)
    assert recipe.prompts is not None
    assert (recipe.prompts.strategy, recipe.prompts.classes_per_prompt) == (calib, together)
    assert (recipe.generator, recipe.filters) == (GeneratorSettings(), FilterSettings())


@pytest.mark.parametrize(
    ("generator", "classes", "together"),
    [("builtin", 10, 3), ("builtin", 2, 2), ("builtin", 1, 2), ("owner/unknown", 10, 2)],
)
def test_how_many_classes_a_prompt_has_depends_on_the_generator(
    generator: str, classes: int, together: int
) -> None:
    names = tuple(f"class {index}" for index in range(classes))
    made = asked(calib="mixup", generator=generator).recipe(preprocessing=SMALL, class_names=names)
    assert made.prompts is not None
    assert made.prompts.classes_per_prompt == together


def test_other_methods_have_no_prompts() -> None:
    recipe = (
        BuildOptions.of({"calib": "noise"})
        .calibration_asked()
        .recipe(preprocessing=SMALL, class_names=CLASSES)
    )
    assert (recipe.method, recipe.prompts, recipe.generator) == ("noise", None, None)


def test_glosses_are_part_of_the_recipe_only_where_they_are_asked_for() -> None:
    options = BuildOptions.of({"label_text": "gloss"})
    recipe = options.calibration_asked().recipe(preprocessing=SMALL, class_names=CLASSES, glosses=GLOSSES)
    assert recipe.prompts is not None
    assert (recipe.prompts.glosses, recipe.prompts.label_text) == (GLOSSES, "gloss")
    plain = (
        BuildOptions.of({})
        .calibration_asked()
        .recipe(preprocessing=SMALL, class_names=CLASSES, glosses=GLOSSES)
    )
    assert plain == asked().recipe(preprocessing=SMALL, class_names=CLASSES)


def test_a_model_without_class_names_says_what_to_type() -> None:
    with pytest.raises(BadOptionError, match="--calib mixup needs class names") as caught:
        asked().recipe(preprocessing=SMALL, class_names=None)
    assert caught.value.hint is not None
    assert all(word in caught.value.hint for word in ("--classes FILE.json", "images:DIR", "noise"))


def test_a_model_without_glosses_says_what_to_type() -> None:
    with pytest.raises(BadOptionError, match="--label-text gloss needs the meaning of every class") as caught:
        asked(label_text="gloss").recipe(preprocessing=SMALL, class_names=CLASSES)
    assert "--classes FILE.json" in (caught.value.hint or "")


def test_options_are_checked_without_heavy_packages() -> None:
    heavy = "{'torch', 'timm', 'onnx', 'diffusers', 'transformers'}"
    code = f"import sys, mixport.pipeline.options.config_file; print(sorted({heavy} & set(sys.modules)))"
    repository = Path(__file__).resolve().parents[4]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=repository
    )
    assert done.stdout.strip() == "[]"


CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOREIGN = ("tench", "goldfish", "dog")


def recipe(*, classes: tuple[str, ...] | None, size: tuple[int, int], **values: object) -> CalibrationRecipe:
    preprocessing = Preprocessing(size=size, mean=(0, 0, 0), std=(1, 1, 1))
    return asked(**values).recipe(preprocessing=preprocessing, class_names=classes)


@pytest.mark.parametrize("size", [(32, 32), (8, 8), (64, 64)])
def test_the_builtin_generator_draws_for_models_of_its_classes(size: tuple[int, int]) -> None:
    made = recipe(classes=CIFAR10, size=size)
    assert made.generator == GeneratorSettings()
    assert recipe(classes=("Cat", "ship"), size=size).prompts is not None


@pytest.mark.parametrize(
    ("classes", "size", "message"),
    [
        (
            FOREIGN,
            (32, 32),
            r"2 of the model's 3 classes are none of the 10 that it knows: 'tench', 'goldfish'$",
        ),
        (CIFAR10, (224, 224), r"the model takes 224x224 pixels, it draws 32x32$"),
        (CIFAR10, (32, 65), r"the model takes 32x65 pixels"),
        (("tench",), (96, 96), r"'tench'; the model takes 96x96"),
        (None, (224, 224), r"the model takes 224x224"),
    ],
)
def test_the_builtin_generator_is_refused_for_other_models(
    classes: tuple[str, ...] | None, size: tuple[int, int], message: str
) -> None:
    for method in ("mixup", "single", "genq"):
        with pytest.raises(
            BadOptionError, match=f"--calib {method}: the builtin generator cannot draw .*{message}"
        ) as caught:
            recipe(classes=classes, size=size, calib=method)
        assert caught.value.hint is not None
        assert all(
            word in caught.value.hint
            for word in ("--calib images:DIR", "--calib noise", "stabilityai/sd-turbo", "--generator builtin")
        )


def test_a_generator_that_is_typed_out_is_taken_and_stays_in_the_command_that_repeats_the_build() -> None:
    assert recipe(classes=FOREIGN, size=(224, 224), generator="builtin").generator == GeneratorSettings()
    assert recipe(classes=FOREIGN, size=(224, 224), generator="stabilityai/sd-turbo").generator is not None
    assert command_line(BuildOptions.of({"generator": "builtin"})).endswith("resnet20 --generator builtin")
    assert command_line(BuildOptions.of({})).endswith("resnet20")


def test_other_methods_ask_for_no_generator() -> None:
    assert recipe(classes=FOREIGN, size=(224, 224), calib="noise").generator is None
