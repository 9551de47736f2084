"""Captions for training images, and the tokenizer made from them.

A caption names the classes of an image in many ways, so that prompts of any template mean something: bare
names, photos, adjectives, two to four classes joined as the prompt strategies join them.
"""

# A script over torch, diffusers and transformers, which leave most of their types open.
# pyright: basic, reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from training.cifar10 import CLASSES

MAX_TOKENS = 32

_TEMPLATES = (
    "A photo of {}",
    "A photo of {}",
    "A photo of {}",
    "a photo of {}.",
    "{}",
    "a picture of {}",
    "an image of {}",
    "a good photo of {}",
    "a close-up photo of {}",
    "a bright photo of {}",
    "a blurry photo of {}",
    "a low resolution photo of {}",
    "a cropped photo of {}",
)
_ADJECTIVES = (
    "small", "large", "big", "little", "nice", "weird", "cool", "clean", "dirty", "old", "new", "bright",
    "dark", "pretty", "plain",
    "colourful", "black", "white", "red", "blue", "green", "brown", "young", "strange", "shiny", "fluffy",
    "tiny", "huge", "good", "bad",
    "plastic", "embroidered", "hard to see",
)  # fmt: skip
_SYNONYMS = {
    "airplane": ("plane", "aeroplane"),
    "automobile": ("car",),
    "ship": ("boat",),
    "truck": ("lorry",),
}
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def caption(classes: Sequence[int], *, chance: random.Random) -> str:
    """One way of naming these classes, in this order; the empty text for none."""
    if not classes:
        return ""
    template = chance.choice(_TEMPLATES)
    named = [_phrase(CLASSES[index], chance=chance) for index in classes]
    joiner = " and " if chance.random() < 0.85 else ", "
    text = named[0] if len(named) == 1 else ", ".join(named[:-1]) + joiner + named[-1]
    return template.format(text)


def _phrase(name: str, *, chance: random.Random) -> str:
    if name in _SYNONYMS and chance.random() < 0.1:
        name = chance.choice(_SYNONYMS[name])
    if chance.random() < 0.25:
        name = f"{chance.choice(_ADJECTIVES)} {name}"
    if chance.random() < 0.1:
        return f"the {name}"
    if chance.random() < 0.05:
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def write_tokenizer(folder: Path, *, texts: Sequence[str]) -> CLIPTokenizer:
    """A CLIP tokenizer (byte-level BPE, Sennrich et al. 2016) whose merges come from `texts`; any other text
    still has tokens.
    """
    backend = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=_SPECIAL[1]))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s+"), behavior="removed"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1024, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    trained = json.loads(backend.to_str())["model"]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in trained["merges"]]
    # CLIP's order: bytes, bytes that end a word, merges, special tokens.
    vocabulary = [*alphabet, *(f"{byte}</w>" for byte in alphabet)]
    seen = set(vocabulary)
    for merged in (merge.replace(" ", "") for merge in merges):
        if merged not in seen:
            seen.add(merged)
            vocabulary.append(merged)
    vocabulary += _SPECIAL
    folder.mkdir(parents=True, exist_ok=True)
    ids = {token: position for position, token in enumerate(vocabulary)}
    tokenizer = CLIPTokenizer(
        vocab=ids, merges=[tuple(merge.split(" ")) for merge in merges], model_max_length=MAX_TOKENS
    )
    tokenizer.save_pretrained(folder)
    # Older releases of transformers read these two.
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    return tokenizer
