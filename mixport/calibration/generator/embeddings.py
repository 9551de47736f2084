"""Prompt embeddings: each distinct prompt through the text encoder, ready to be passed to the pipeline's
call.

A pipeline of a shape that `prompt_encoder` does not know gets its prompts as texts, and the record says so;
so does one whose tokenizer pads to the longest prompt of a call, since its embeddings cannot be put together
from several calls. Which of the two it is follows from the pipeline alone, from two probes: a run that goes
on where another one stopped draws the same way.

Distinct prompts are encoded in groups of fixed size, in the order of their first appearance in the sequence:
which images are missing, how many are asked for, or whether a group was dropped and is encoded once more,
then changes neither the shape of a group nor the place of a prompt in it, and so no bit.
"""

# diffusers pipelines and torch tensors come without types here.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mixport.calibration.generator.open_pipeline import OpenPipeline
from mixport.calibration.generator.prompt_encoder import NEGATIVE, Conditions, PromptEncoder
from mixport.records.errors import BadInputError

GROUP = 16
#: Of embeddings held for later images. GenQ's prompts for 1,000 classes would need 3 GB with CLIP, and ten
#: times that with T5.
MOST_BYTES = 512 << 20

#: No longer than the 77 tokens of CLIP, which every text encoder reads.
_PROBES = ("a", " ".join(["a"] * 48))


class PromptConditions:
    """What the call needs to know of prompts, by image index.

    Args:
        opened: the pipeline.
        texts: the prompt of every image of the sequence, from image 0.
        wanted: indices that will be asked for, each once; embeddings are dropped after their last use.
        negative_prompt: empty for the pipeline's own.
        guided: whether the negative prompt counts.
        most_bytes: of embeddings held; above it the group that was not used for longest goes, and is encoded
            again when it is needed.
    """

    def __init__(
        self,
        opened: OpenPipeline,
        texts: Sequence[str],
        *,
        wanted: Iterable[int],
        negative_prompt: str,
        guided: bool,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self.texts, self.negative_prompt, self.guided, self.most_bytes = (
            texts,
            negative_prompt,
            guided,
            most_bytes,
        )
        self._encoder, self._name = PromptEncoder(opened), opened.name
        self._arguments = opened.arguments
        self._distinct = list(dict.fromkeys(texts))
        self._places = {text: place for place, text in enumerate(self._distinct)}
        self._uses = Counter(self._group_of(index) for index in wanted)
        self._groups: OrderedDict[int, Conditions] = OrderedDict()
        self._negative: Conditions = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    @cached_property
    def mode(self) -> Literal["embeddings", "texts"]:
        """`embeddings`, or `texts` where the pipeline's shape is not known, or the length of its embeddings
        differs by call.
        """
        short, long = (self._encoder.positive([text]) for text in _PROBES)
        negative = self._encoder.negative(self.negative_prompt) if self.guided else {}
        if short is None or long is None or negative is None:
            return "texts"
        shapes = _shapes(short)
        if _shapes(long) != shapes or any(
            shape != shapes.get(name, shape) for name, shape in _shapes(negative).items()
        ):
            return "texts"
        self._negative, self._shapes = negative, shapes
        return "embeddings"

    @property
    def held_bytes(self) -> int:
        """Size of the embeddings that are held for later images."""
        return sum(_bytes(group) for group in self._groups.values())

    def of(self, indices: Sequence[int]) -> dict[str, Any]:
        """Arguments of the call for these images, in their order.

        Raises:
            BadInputError: the text encoder contradicts what it gave before.
        """
        if self.mode == "texts":
            return self._as_texts(indices)
        rows: dict[str, Conditions] = {}
        for group in sorted({self._group_of(index) for index in indices}):
            encoded = self._encoded(group)
            for text in {self.texts[index] for index in indices if self._group_of(index) == group}:
                place = self._places[text] % GROUP
                # A view would keep the whole group after it is dropped.
                rows[text] = {name: tensor[place : place + 1].clone() for name, tensor in encoded.items()}
        # Some calls have an empty text as default, and refuse texts beside embeddings.
        texts = {name: None for name in ("prompt", "negative_prompt") if name in self._arguments}
        negative = [self._negative] * len(indices)
        return {**texts, **_stacked([rows[self.texts[index]] for index in indices]), **_stacked(negative)}

    def release(self, indices: Sequence[int]) -> None:
        """These images are drawn."""
        for index in indices:
            group = self._group_of(index)
            self._uses[group] -= 1
            if self._uses[group] <= 0:
                self._groups.pop(group, None)

    def _group_of(self, index: int) -> int:
        return self._places[self.texts[index]] // GROUP

    def _encoded(self, group: int) -> Conditions:
        if group in self._groups:
            self._groups.move_to_end(group)
            return self._groups[group]
        members = self._distinct[group * GROUP : (group + 1) * GROUP]
        encoded = self._encoder.positive([*members, *[members[-1]] * (GROUP - len(members))])
        if encoded is None or _shapes(encoded) != self._shapes:
            raise BadInputError(
                (
                    f"the text encoder of generator {self._name} gives embeddings of different shapes, "
                    f"first for {members[0]!r}"
                ),
                hint="another --generator, or a shorter --template",
            )
        self._groups[group] = encoded
        held = self.held_bytes
        while held > self.most_bytes and len(self._groups) > 1:
            held -= _bytes(self._groups.popitem(last=False)[1])
        return encoded

    def _as_texts(self, indices: Sequence[int]) -> dict[str, Any]:
        prompts: dict[str, Any] = {"prompt": [self.texts[index] for index in indices]}
        if self.guided and self.negative_prompt and "negative_prompt" in self._arguments:
            prompts["negative_prompt"] = [self.negative_prompt] * len(indices)
        return prompts


def text_similarity(opened: OpenPipeline, texts: Sequence[str]) -> NDArray[np.float32] | None:
    """Cosine of every two texts in the embedding of the pipeline's text encoder, [N, N]; None where its shape
    is not known.

    The embedding of a text is the pooled one where there is one, else the mean over its tokens; what all
    texts have in common (the words of the template, the padding) is taken away first, as the mean over the
    texts. Our choice, from no paper.
    """
    encoder = PromptEncoder(opened)
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
    mask = (
        encoded["prompt_attention_mask"].double().cpu().numpy()
        if "prompt_attention_mask" in encoded
        else np.ones(embeds.shape[:2])
    )
    return (embeds * mask[..., None]).sum(axis=1) / np.maximum(mask.sum(axis=1), 1.0)[:, None]


def _stacked(rows: Sequence[Conditions]) -> dict[str, Any]:
    import torch

    return {name: torch.cat([row[name] for row in rows]) for name in (rows[0] if rows else {})}


def _shapes(rows: Conditions) -> dict[str, tuple[int, ...]]:
    """Shape of one row, by name."""
    return {name.removeprefix(NEGATIVE): tuple(tensor.shape[1:]) for name, tensor in rows.items()}


def _bytes(group: Conditions) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in group.values())
