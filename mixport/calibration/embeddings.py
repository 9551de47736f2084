"""Prompt embeddings: each distinct prompt through the text encoder once, ready to be passed to the pipeline's call.

Pipelines agree on `encode_prompt` and on the names of what their call takes, not on the order of what `encode_prompt` returns. The
three orders that are common (Stable Diffusion 1.x and Turbo; SDXL and SD3 with pooled embeddings; PixArt and Sana with masks) are
known here by the names in the call. A pipeline of any other shape gets its prompts as texts, and the record says so.

Distinct prompts are encoded in groups of fixed size, in the order of their first appearance in the sequence: which images are
missing, or how many are asked for, then changes neither the shape of a group nor the place of a prompt in it, and so no bit.
"""

# diffusers pipelines and torch tensors come without types here.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mixport.calibration.open_pipeline import OpenPipeline

GROUP = 16

_CONDITION = re.compile(r"(?!ip_adapter).*prompt_?\w*(embeds|mask|ids)\w*")
_DIMENSIONS = {"prompt_embeds": 3, "pooled_prompt_embeds": 2, "prompt_attention_mask": 2}
_NEGATIVE = "negative_"
#: What the call takes, and the order in which `encode_prompt` returns it; None where the call does not take it.
_ORDERS: tuple[tuple[str | None, ...], ...] = (
    ("prompt_embeds", "negative_prompt_embeds"),
    ("prompt_embeds", None),
    ("prompt_embeds", "prompt_attention_mask"),
    ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
    ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask"),
)

Conditions = Mapping[str, Any]


class PromptConditions:
    """What the call needs to know of prompts, by image index.

    Args:
        opened: the pipeline.
        texts: the prompt of every image of the sequence, from image 0.
        wanted: indices that will be asked for, each once; embeddings are dropped after their last use.
        negative_prompt: empty for the pipeline's own.
        guided: whether the negative prompt counts.

    Attributes:
        mode: `embeddings`, or `texts` where the pipeline's shape is not known.
    """

    def __init__(self, opened: OpenPipeline, texts: Sequence[str], *, wanted: Iterable[int], negative_prompt: str, guided: bool) -> None:
        self.texts, self.negative_prompt, self.guided = texts, negative_prompt, guided
        self.mode: Literal["embeddings", "texts"] = "embeddings"
        self._encoder = _Encoder(opened)
        self._arguments = opened.arguments
        self._distinct = list(dict.fromkeys(texts))
        self._places = {text: place for place, text in enumerate(self._distinct)}
        self._uses = Counter(texts[index] for index in wanted)
        self._ready: dict[str, Conditions] = {}
        self._negative: Conditions | None = None
        if self._encoder.order is None:
            self.mode = "texts"

    def of(self, indices: Sequence[int]) -> dict[str, Any]:
        """Arguments of the call for these images, in their order."""
        if self.mode == "embeddings":
            self._prepare(indices)
        if self.mode == "texts":
            return self._as_texts(indices)
        rows = [self._ready[self.texts[index]] for index in indices]
        negative = [self._negative] * len(rows) if self._negative is not None else []
        # Some calls have an empty text as default, and refuse texts beside embeddings.
        texts = {name: None for name in ("prompt", "negative_prompt") if name in self._arguments}
        return {**texts, **_stacked(rows), **_stacked(negative)}

    def release(self, indices: Sequence[int]) -> None:
        """These images are drawn."""
        for index in indices:
            text = self.texts[index]
            self._uses[text] -= 1
            if self._uses[text] <= 0:
                self._ready.pop(text, None)

    def _prepare(self, indices: Sequence[int]) -> None:
        if self.guided and self._negative is None:
            self._negative = self._encoder.negative(self.negative_prompt)
            if self._negative is None:
                self.mode = "texts"
                return
        asked = {self.texts[index] for index in indices}
        for group in sorted({self._places[text] // GROUP for text in asked if text not in self._ready}):
            members = self._distinct[group * GROUP : (group + 1) * GROUP]
            encoded = self._encoder.positive([*members, *[members[-1]] * (GROUP - len(members))])
            if encoded is None or not self._fits(encoded):
                self.mode = "texts"
                self._ready.clear()
                return
            for place, text in enumerate(members):
                if text in asked or self._uses[text] > 0:
                    self._ready[text] = {name: tensor[place : place + 1].clone() for name, tensor in encoded.items()}

    def _fits(self, encoded: Conditions) -> bool:
        """Whether these rows stack with all others: a tokenizer that pads to the longest prompt of a call makes them differ."""
        others = next(iter(self._ready.values()), encoded)
        negative = {name.removeprefix(_NEGATIVE): tensor for name, tensor in (self._negative or {}).items()}
        pairs = [(tensor, other[name]) for name, tensor in encoded.items() for other in (others, negative) if name in other]
        return all(tensor.shape[1:] == other.shape[1:] for tensor, other in pairs)

    def _as_texts(self, indices: Sequence[int]) -> dict[str, Any]:
        prompts: dict[str, Any] = {"prompt": [self.texts[index] for index in indices]}
        if self.guided and self.negative_prompt and "negative_prompt" in self._arguments:
            prompts["negative_prompt"] = [self.negative_prompt] * len(indices)
        return prompts


def text_similarity(opened: OpenPipeline, texts: Sequence[str]) -> NDArray[np.float32] | None:
    """Cosine of every two texts in the embedding of the pipeline's text encoder, [N, N]; None where its shape is not known.

    The embedding of a text is the pooled one where there is one, else the mean over its tokens; what all texts have in common (the
    words of the template, the padding) is taken away first, as the mean over the texts. Our choice, from no paper.
    """
    encoder = _Encoder(opened)
    rows: list[NDArray[np.float64]] = []
    for start in range(0, len(texts), GROUP):
        members = list(texts[start : start + GROUP])
        encoded = encoder.positive([*members, *[members[-1]] * (GROUP - len(members))])
        if encoded is None:
            return None
        rows.append(_pooled(encoded)[: len(members)])
    vectors = np.concatenate(rows)
    vectors = vectors - vectors.mean(axis=0)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(lengths > 0.0, lengths, 1.0)
    return (unit @ unit.T).astype(np.float32)


def _pooled(encoded: Conditions) -> NDArray[np.float64]:
    if "pooled_prompt_embeds" in encoded:
        return encoded["pooled_prompt_embeds"].double().cpu().numpy()
    embeds = encoded["prompt_embeds"].double().cpu().numpy()
    mask = encoded["prompt_attention_mask"].double().cpu().numpy() if "prompt_attention_mask" in encoded else np.ones(embeds.shape[:2])
    return (embeds * mask[..., None]).sum(axis=1) / np.maximum(mask.sum(axis=1), 1.0)[:, None]


class _Encoder:
    """`encode_prompt` of one pipeline, called as its own `__call__` would."""

    def __init__(self, opened: OpenPipeline) -> None:
        self.pipe, self.device = opened.pipe, opened.device
        encode = getattr(opened.pipe, "encode_prompt", None)
        taken = {name for name in opened.arguments if _CONDITION.fullmatch(name)}
        self.order = next((order for order in _ORDERS if {name for name in order if name} == taken), None) if encode else None
        parameters = inspect.signature(encode).parameters if encode else {}
        # The call passes its own arguments on: where the two have different defaults, those of the call hold.
        self.passed_on = {
            name: opened.arguments[name].default
            for name in parameters
            if name in opened.arguments and opened.arguments[name].default is not inspect.Parameter.empty
        }
        self.parameters = parameters

    def positive(self, texts: list[str]) -> Conditions | None:
        """Tensors by argument name, one row a text; None where the pipeline is not of a known shape."""
        found = self._encode(texts, negative_prompt="", guided=False)
        return _checked({name: one for name, one in found.items() if not name.startswith(_NEGATIVE)}, rows=len(texts)) if found else None

    def negative(self, text: str) -> Conditions | None:
        """The same for the negative prompt, one row; no tensors where the call takes none."""
        found = self._encode([""], negative_prompt=text, guided=True)
        if found is None or (self.order is not None and not any((name or "").startswith(_NEGATIVE) for name in self.order)):
            return {} if found is not None else None
        return _checked({name: one for name, one in found.items() if name.startswith(_NEGATIVE)}, rows=1)

    def _encode(self, texts: list[str], *, negative_prompt: str, guided: bool) -> dict[str, Any] | None:
        if self.order is None:
            return None
        given: dict[str, Any] = {
            **self.passed_on,
            "prompt": texts,
            "device": self.device,
            "num_images_per_prompt": 1,
            "do_classifier_free_guidance": guided,
        }
        if negative_prompt:
            given["negative_prompt"] = [negative_prompt]
        arguments = {name: value for name, value in given.items() if name in self.parameters}
        required = {
            name
            for name, one in self.parameters.items()
            if one.default is inspect.Parameter.empty and one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        }
        if not required <= arguments.keys():
            return None
        import torch

        with torch.inference_mode():
            returned = self.pipe.encode_prompt(**arguments)
        if not isinstance(returned, tuple) or len(returned) != len(self.order):
            return None
        return {name: one for name, one in zip(self.order, returned, strict=True) if name is not None and one is not None}


def _checked(found: Mapping[str, Any], *, rows: int) -> Conditions | None:
    import torch

    for name, one in found.items():
        dimensions = _DIMENSIONS[name.removeprefix(_NEGATIVE)]
        if not isinstance(one, torch.Tensor) or one.dim() != dimensions or len(one) != rows:
            return None
    return found if found else None


def _stacked(rows: Sequence[Conditions]) -> dict[str, Any]:
    import torch

    return {name: torch.cat([row[name] for row in rows]) for name in (rows[0] if rows else {})}
