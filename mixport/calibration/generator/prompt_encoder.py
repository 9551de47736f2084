"""A pipeline's own text encoder, called as the pipeline calls it.

Pipelines agree on `encode_prompt` and on the names of what their call takes, not on the order of what
`encode_prompt` returns. The three orders that are common (Stable Diffusion 1.x and Turbo; SDXL and SD3 with
pooled embeddings; PixArt and Sana with masks) are known here by the names in the call.
"""

# diffusers pipelines and torch tensors come without types here.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from mixport.calibration.generator.open_pipeline import OpenPipeline

NEGATIVE = "negative_"

_CONDITION = re.compile(r"(?!ip_adapter).*prompt_?\w*(embeds|mask|ids)\w*")
_DIMENSIONS = {"prompt_embeds": 3, "pooled_prompt_embeds": 2, "prompt_attention_mask": 2}
#: What the call takes, and the order in which `encode_prompt` returns it; None where the call does not take
#: it.
_ORDERS: tuple[tuple[str | None, ...], ...] = (
    ("prompt_embeds", "negative_prompt_embeds"),
    ("prompt_embeds", None),
    ("prompt_embeds", "prompt_attention_mask"),
    ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
    ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask"),
)

Conditions = Mapping[str, Any]
"""Tensors by the name of the call's argument, one row a text."""


class PromptEncoder:
    """`encode_prompt` of one pipeline, called as its own `__call__` would."""

    def __init__(self, opened: OpenPipeline) -> None:
        self.pipe, self.device = opened.pipe, opened.device
        encode = getattr(opened.pipe, "encode_prompt", None)
        taken = {name for name in opened.arguments if _CONDITION.fullmatch(name)}
        self.order = (
            next((order for order in _ORDERS if {name for name in order if name} == taken), None)
            if encode
            else None
        )
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
        return (
            _conditions(
                {name: one for name, one in found.items() if not name.startswith(NEGATIVE)}, rows=len(texts)
            )
            if found
            else None
        )

    def negative(self, text: str) -> Conditions | None:
        """The same for the negative prompt, one row; no tensors where the call takes none."""
        found = self._encode([""], negative_prompt=text, guided=True)
        if found is None or (
            self.order is not None and not any((name or "").startswith(NEGATIVE) for name in self.order)
        ):
            return {} if found is not None else None
        return _conditions({name: one for name, one in found.items() if name.startswith(NEGATIVE)}, rows=1)

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
        return {
            name: one
            for name, one in zip(self.order, returned, strict=True)
            if name is not None and one is not None
        }


def _conditions(found: Mapping[str, Any], *, rows: int) -> Conditions | None:
    import torch

    for name, one in found.items():
        dimensions = _DIMENSIONS[name.removeprefix(NEGATIVE)]
        if not isinstance(one, torch.Tensor) or one.dim() != dimensions or len(one) != rows:
            return None
    return found if found else None
