from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mixport.model.class_file import read_classes
from mixport.model.float_model import load_model
from mixport.model.output_classes import check_class_count
from mixport.model.shipped import builtin_models
from mixport.model.shipped.builtin_models import CIFAR10_CLASSES, builtin_weights, create_builtin
from mixport.model.shipped.cifar_vit import cifar_vit
from mixport.model.timm_model import create_timm
from mixport.records.errors import BadInputError


@pytest.mark.parametrize(
    "name", ["cifar10-resnet20", "cifar10-resnet32", "cifar10-resnet44", "cifar10-resnet56", "cifar10-vit"]
)
def test_every_builtin_model_can_be_made(name: str) -> None:
    module = create_builtin(name, arguments={}).eval()
    assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_transformer_is_small_and_can_be_changed() -> None:
    assert sum(value.numel() for value in cifar_vit().parameters()) < 3_000_000
    assert cifar_vit(depth=1, num_classes=7).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 7)


def test_a_builtin_model_takes_the_weights_that_ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    shipped = create_builtin("cifar10-resnet20", arguments={}).state_dict()
    file = tmp_path / "cifar10-resnet20.safetensors"
    save_file(shipped, file)
    monkeypatch.setattr(
        builtin_models, "weights_file", lambda name: file if name == "cifar10-resnet20" else None
    )
    model = load_model("builtin:cifar10-resnet20")
    assert torch.equal(model.module.state_dict()["conv1.weight"], shipped["conv1.weight"])
    assert (model.class_names, model.glosses, model.assumed) == (CIFAR10_CLASSES, None, ())
    assert load_model("builtin:cifar10-resnet20", random_weights=True).sha256 != model.sha256
    with pytest.raises(BadInputError, match="builtin:cifar10-resnet32 has no weights of its own") as caught:
        load_model("builtin:cifar10-resnet32")
    assert caught.value.hint == "--weights FILE.safetensors, or --random-weights to try it"


def test_what_is_no_builtin_model() -> None:
    with pytest.raises(
        BadInputError, match=r"unknown builtin model 'cifar10-resnet21', known: .*cifar10-vit"
    ):
        builtin_weights("cifar10-resnet21")
    with pytest.raises(BadInputError, match="refused its arguments"):
        create_builtin("cifar10-resnet20", arguments={"depth": 3})


def test_preprocessing_that_nobody_states_is_marked(tmp_path: Path) -> None:
    assert load_model("tests.models:tiny").assumed == ()
    assert load_model("tests.unit.model.shipped.test_builtin_models:plain").assumed == (
        "input_size",
        "mean",
        "std",
    )
    from mixport.model.request import PreprocessingOverrides

    stated = PreprocessingOverrides(input_size=(8, 8), mean=(0, 0, 0))
    assert load_model(f"{__name__}:plain", overrides=stated).assumed == ("std",)


def plain() -> torch.nn.Module:
    """A factory that says nothing of its preprocessing."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 2)
    )


def test_imagenet_classes_have_distinct_names_and_meanings() -> None:
    _, _, classes = create_timm("mobilenetv3_small_050", size=None, pretrained=False, arguments={})
    assert classes is not None
    assert classes.glosses is not None
    assert (len(set(classes.names)), len(classes.glosses)) == (1000, 1000)
    assert classes.ids is not None
    assert (classes.ids[0], classes.names[0], len(set(classes.ids))) == ("n01440764", "tench", 1000)
    assert (classes.names[0], classes.names[21]) == ("tench", "kite")
    assert classes.names[134].startswith("crane (large long-necked wading bird")
    assert classes.names[517] == "crane (lifts and moves heavy objects)"
    assert classes.glosses[21].startswith("any of several small graceful hawks")
    _, _, none = create_timm(
        "mobilenetv3_small_050", size=None, pretrained=False, arguments={"num_classes": 10}
    )
    assert none is None


@pytest.mark.parametrize(
    ("document", "names", "glosses"),
    [
        (["cat", "dog"], ("cat", "dog"), None),
        ([{"name": "cat"}, {"name": "dog"}], ("cat", "dog"), None),
        (
            [{"name": "cat", "gloss": "purrs"}, {"name": "dog", "gloss": "barks"}],
            ("cat", "dog"),
            ("purrs", "barks"),
        ),
        ([{"name": "cat", "gloss": "purrs"}, {"name": "dog"}], ("cat", "dog"), None),
    ],
)
def test_a_class_file(
    document: object, names: tuple[str, ...], glosses: tuple[str, ...] | None, tmp_path: Path
) -> None:
    file = tmp_path / "classes.json"
    file.write_text(json.dumps(document), encoding="utf-8")
    found = read_classes(file)
    assert (found.names, found.glosses) == (names, glosses)
    model = load_model("tests.models:tiny", classes=file)
    assert (model.class_names, model.glosses) == (names, glosses)


def test_an_empty_class_file_is_said_to_be_empty(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text("[]", encoding="utf-8")
    with pytest.raises(BadInputError, match=r"classes\.json is empty: it holds a list without names"):
        read_classes(tmp_path / "classes.json")


@pytest.mark.parametrize("count", [9, 10, 11])
def test_class_names_are_as_many_as_outputs(count: int, tmp_path: Path) -> None:
    file = tmp_path / "classes.json"
    file.write_text(json.dumps([f"class {index}" for index in range(count)]), encoding="utf-8")
    model = load_model("tests.models:tiny", classes=file)
    if count == 10:
        check_class_count(model, source=file)
        return
    with pytest.raises(
        BadInputError, match=rf"classes\.json has {count} names, and tests\.models:tiny has 10 outputs"
    ):
        check_class_count(model, source=file)


def test_a_model_that_does_not_run_on_one_image_is_left_to_quantize(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text('["cat"]', encoding="utf-8")
    model = load_model("tests.models:tiny", classes=tmp_path / "classes.json")
    check_class_count(
        dataclasses.replace(model, input_shape=(1, 5, 32, 32)), source=tmp_path / "classes.json"
    )
    check_class_count(dataclasses.replace(model, class_names=None), source=tmp_path / "classes.json")


@pytest.mark.parametrize("text", ["", "{}", "3", "[]", '["a", 3]', '[{"label": "a"}]', "[" * 100_000])
def test_what_is_no_class_file(text: str, tmp_path: Path) -> None:
    file = tmp_path / "classes.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(BadInputError, match=r"class file .*classes\.json"):
        read_classes(file)
