import random
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from mixport.calibration.prompts.prompts import prompts
from mixport.calibration.recipe import PromptRecipe
from training.captions import MAX_TOKENS, caption, write_tokenizer
from training.cifar10 import CLASSES
from training.text import random_classes

_ALSO = {"airplane": ("plane",), "automobile": ("car",), "ship": ("boat",), "truck": ("lorry",)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chance = random.Random(0)
    made = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(made, texts=[caption(random_classes(chance), chance=chance) for _ in range(3000)])
    return made


def test_a_caption_names_its_classes_and_no_others() -> None:
    chance = random.Random(1)
    for _ in range(500):
        classes = random_classes(chance)
        text = caption(classes, chance=chance)
        for index, name in enumerate(CLASSES):
            named = any(word in text for word in (name, *_ALSO.get(name, ())))
            assert named == (index in classes), text


def test_no_classes_make_the_empty_caption() -> None:
    assert caption((), chance=random.Random(0)) == ""


def test_class_names_are_one_token_each(folder: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    for name in CLASSES:
        assert tokenizer.tokenize(f"A photo of a {name}")[-1] == f"{name}</w>"


def test_any_text_has_tokens_and_comes_back(folder: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    for text in ("a zebra's crossing", "naïve café", "日本", "42 ships!"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("k", [2, 3, 4])
def test_the_prompts_of_the_strategies_fit(folder: Path, k: int) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    for prompt in prompts(
        PromptRecipe(strategy="mixup", class_names=CLASSES, classes_per_prompt=k), count=50
    ):
        assert len(tokenizer(prompt.text).input_ids) <= MAX_TOKENS
