"""Models of timm: built, described and brought to the form they run in."""

# timm is partly untyped, and torch leaves parts of its own signatures without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from mixport.model.class_file import Classes
from mixport.records.calibration_set import Preprocessing
from mixport.records.decision import Decision
from mixport.records.errors import BadInputError, UnsupportedModelError


def create_timm(
    arch: str, *, size: tuple[int, int] | None, pretrained: bool, arguments: dict[str, Any]
) -> tuple[nn.Module, Preprocessing, Classes | None]:
    """The model, its preprocessing, and its classes where they are those of ImageNet.

    Args:
        arch: name, with or without the tag of its weights.
        size: (height, width) of the input where the user states it.
        pretrained: fetch timm's weights.
        arguments: for timm.create_model.

    Raises:
        BadInputError: unknown architecture, or one that cannot be built or fetched.
        UnsupportedModelError: the model does not take RGB images.
    """
    import timm
    from timm.data.config import resolve_data_config

    if not timm.is_model(_family(arch)):
        close = difflib.get_close_matches(_family(arch), timm.list_models(), n=5)
        similar = f", similar: {', '.join(close)}" if close else ""
        listing = f"import timm; print(timm.list_models('{_family(arch)[:4]}*'))"
        raise BadInputError(f"timm has no architecture {arch!r}{similar}", hint=f'python -c "{listing}"')
    try:
        module = _create(arch, size=size, pretrained=pretrained, arguments=arguments)
    except Exception as error:  # timm and the hub raise many types; the cause is kept
        what = (
            "pretrained weights could not be fetched" if pretrained else "the architecture could not be built"
        )
        hint = (
            "--weights FILE.safetensors, or --random-weights" if pretrained else "check --model-arg KEY=VALUE"
        )
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInputError(f"timm:{arch}: {what}: {reason}", hint=hint) from error
    resolve: Callable[..., dict[str, Any]] = resolve_data_config
    config = resolve({}, model=module)
    _, height, width = config["input_size"]
    preprocessing = Preprocessing(
        size=(int(height), int(width)),
        mean=_rgb(config["mean"]),
        std=_rgb(config["std"]),
        crop_fraction=float(config["crop_pct"]),
        interpolation=str(config["interpolation"]),
    )
    return module, preprocessing, _imagenet_classes(module)


def _create(
    arch: str, *, size: tuple[int, int] | None, pretrained: bool, arguments: dict[str, Any]
) -> nn.Module:
    """Models with position embeddings must be built for their input's size; the others refuse the
    argument.
    """
    import timm

    if size is not None and "img_size" not in arguments:
        try:
            return timm.create_model(arch, pretrained=pretrained, img_size=size, **arguments)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
    return timm.create_model(arch, pretrained=pretrained, **arguments)


def merge_branches(module: nn.Module) -> tuple[nn.Module, tuple[Decision, ...]]:
    """Merge training-time branches (RepVGG, MobileOne, FastViT, LeViT ...): quantising them apart would cost
    accuracy and speed.
    """
    from timm.utils.model import reparameterize_model

    before = sum(1 for _ in module.modules())
    try:
        merged: nn.Module = reparameterize_model(module)
    except Exception as error:
        return module, (
            Decision(where="model", what="branches kept", why=f"timm could not merge them: {error}"),
        )
    after = sum(1 for _ in merged.modules())
    if after == before:
        return module, ()
    return merged.eval().requires_grad_(False), (
        Decision(
            where="model",
            what="training-time branches merged",
            why=f"timm reparameterize_model: {before} modules became {after}",
        ),
    )


def _family(arch: str) -> str:
    """Architecture without the tag of its weights."""
    return arch.split(".")[0]


def _rgb(values: Any) -> tuple[float, float, float]:
    channels = [float(value) for value in values]
    if len(channels) != 3:
        raise UnsupportedModelError(f"the model takes {len(channels)} channels, expected 3 (RGB)")
    return channels[0], channels[1], channels[2]


def _imagenet_classes(module: nn.Module) -> Classes | None:
    if getattr(module, "num_classes", None) != 1000:
        return None
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    # The lemmas of the WordNet synset, and in full these lemmas, a colon and the gloss.
    lemmas = [info.index_to_description(i) for i in range(1000)]
    full = [info.index_to_description(i, detailed=True) for i in range(1000)]
    glosses = tuple(text.removeprefix(f"{words}: ") for words, text in zip(lemmas, full, strict=True))
    names = _distinct_names([words.split(", ") for words in lemmas], glosses)
    return Classes(names=names, glosses=glosses, ids=tuple(info.index_to_label_name(i) for i in range(1000)))


def _distinct_names(lemmas: Sequence[Sequence[str]], glosses: Sequence[str]) -> tuple[str, ...]:
    """First lemmas; where two classes share theirs, the second lemma or else the beginning of the gloss tells
    them apart.
    """
    shared = Counter(words[0].casefold() for words in lemmas)

    def name(words: Sequence[str], gloss: str) -> str:
        if shared[words[0].casefold()] == 1:
            return words[0]
        return words[1] if len(words) > 1 else f"{words[0]} ({re.split('[,;]', gloss)[0]})"

    return tuple(name(words, gloss) for words, gloss in zip(lemmas, glosses, strict=True))
