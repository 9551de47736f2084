from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mixport.calibration.generator.embeddings import GROUP, PromptConditions, text_similarity
from mixport.calibration.generator.open_pipeline import OpenPipeline, open_pipeline
from mixport.calibration.generator.request import resolve_request
from mixport.records.errors import BadInputError
from tests.unit.calibration.conftest import prompt_recipe, settings

TEXTS = ["a cat", "a dog", "a cat", "a ship", "a dog", "a cat"]


def opened(folder: Path, cache: Path) -> OpenPipeline:
    return open_pipeline(resolve_request(prompt_recipe(), settings(folder), cache=cache))


def conditions(
    found: OpenPipeline, texts: list[str] = TEXTS, *, negative_prompt: str = "", guided: bool = True
) -> PromptConditions:
    return PromptConditions(
        found, texts, wanted=range(len(texts)), negative_prompt=negative_prompt, guided=guided
    )


def count_encodings(found: OpenPipeline, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Every list of texts that the text encoder gets."""
    calls: list[list[str]] = []
    encode = type(found.pipe).encode_prompt

    def counting(self: Any, prompt: list[str], *arguments: Any, **named: Any) -> Any:
        if named.get("prompt_embeds") is None:
            calls.append(prompt)
        return encode(self, prompt, *arguments, **named)

    counting.__signature__ = inspect.signature(encode)  # pyright: ignore[reportFunctionMemberAccess]
    monkeypatch.setattr(type(found.pipe), "encode_prompt", counting)
    return calls


@pytest.fixture(params=["sd", "sdxl", "pixart"])
def pipeline(
    request: pytest.FixtureRequest, tmp_path: Path, tiny_pipeline: Path, other_pipelines: dict[str, Path]
) -> OpenPipeline:
    return opened({"sd": tiny_pipeline, **other_pipelines}[request.param], tmp_path)


@pytest.mark.parametrize("negative_prompt", ["", "blurry"])
@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_embeddings_give_the_images_that_texts_give(
    pipeline: OpenPipeline, negative_prompt: str, guidance: float
) -> None:
    made = conditions(pipeline, negative_prompt=negative_prompt, guided=guidance > 1.0)
    arguments = made.of([0, 1, 3])
    assert made.mode == "embeddings"
    assert {name for name in arguments if arguments[name] is not None} >= {"prompt_embeds"}

    def draw(**named: Any) -> np.ndarray:
        noise = [torch.Generator("cpu").manual_seed(seed) for seed in range(3)]
        more = {"use_resolution_binning": False} if "use_resolution_binning" in pipeline.arguments else {}
        with torch.inference_mode():
            return pipeline.pipe(
                generator=noise,
                guidance_scale=guidance,
                num_inference_steps=2,
                output_type="np",
                **more,
                **named,
            ).images

    texts: dict[str, Any] = {"prompt": ["a cat", "a dog", "a ship"]}
    if negative_prompt:
        texts["negative_prompt"] = [negative_prompt] * 3
    np.testing.assert_allclose(draw(**arguments), draw(**texts), atol=2e-5)


def test_each_distinct_prompt_is_encoded_once(
    pipeline: OpenPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_encodings(pipeline, monkeypatch)
    made = conditions(pipeline, negative_prompt="blurry")
    for start in (0, 3):
        made.of(range(start, start + 3))
        made.release(range(start, start + 3))
    # Two probes, one call for the negative prompt, one for the group of all three.
    assert [len(call) for call in calls] == [1, 1, 1, GROUP]
    assert list(dict.fromkeys(calls[-1])) == ["a cat", "a dog", "a ship"]


def test_embeddings_do_not_depend_on_what_is_missing(pipeline: OpenPipeline) -> None:
    texts = [f"a thing with number {number}" for number in range(GROUP + 4)]
    everything = conditions(pipeline, texts)
    everything.of(range(GROUP + 2))
    late = PromptConditions(pipeline, texts, wanted=[GROUP + 2], negative_prompt="", guided=True)
    for name, tensor in late.of([GROUP + 2]).items():
        if tensor is not None:
            assert torch.equal(tensor, everything.of([GROUP + 2])[name]), name


def test_embeddings_go_after_the_last_use_of_their_group(pipeline: OpenPipeline) -> None:
    made = conditions(pipeline)
    made.of([0, 1, 2])
    made.release([0, 1, 2])
    assert made.held_bytes > 0
    made.release([3, 5])
    assert made.held_bytes > 0
    made.release([4])
    assert made.held_bytes == 0


def test_embeddings_held_are_bounded_and_change_no_bit(
    pipeline: OpenPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"a thing with number {number % 50}" for number in range(100)]
    free = conditions(pipeline, texts)
    free.of(range(len(texts)))
    a_group = free.held_bytes // 4
    assert a_group > 0
    bounded = PromptConditions(
        pipeline, texts, wanted=range(len(texts)), negative_prompt="", guided=True, most_bytes=2 * a_group
    )
    calls = count_encodings(pipeline, monkeypatch)
    for start in range(0, len(texts), 5):
        indices = range(start, start + 5)
        expected = free.of(indices)
        for name, tensor in bounded.of(indices).items():
            assert tensor is None or torch.equal(tensor, expected[name]), (start, name)
        assert bounded.held_bytes <= 2 * a_group
        bounded.release(indices)
    groups = [tuple(call) for call in calls if len(call) == GROUP]
    assert len(set(groups)) == 4, "the same groups, whenever they are encoded"
    assert len(groups) == 8, "each once a turn"


def test_the_group_that_was_not_used_for_longest_goes(
    pipeline: OpenPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{number} things" for number in range(3 * GROUP)]
    first = conditions(pipeline, texts)
    first.of([0])
    made = PromptConditions(
        pipeline,
        texts * 2,
        wanted=range(6 * GROUP),
        negative_prompt="",
        guided=True,
        most_bytes=2 * first.held_bytes,
    )
    for group in (0, 1, 0, 2):
        made.of([group * GROUP])
    calls = count_encodings(pipeline, monkeypatch)
    made.of([1, 2 * GROUP + 1])
    assert calls == []
    made.of([GROUP])
    assert [len(call) for call in calls] == [GROUP]


def test_an_unknown_shape_gets_texts(pipeline: OpenPipeline) -> None:
    odd = dataclasses.replace(
        pipeline,
        arguments={
            **pipeline.arguments,
            "prompt_embeds_2": inspect.Parameter("x", inspect.Parameter.KEYWORD_ONLY),
        },
    )
    made = conditions(odd, negative_prompt="blurry")
    assert made.of([0, 1]) == {"prompt": ["a cat", "a dog"], "negative_prompt": ["blurry", "blurry"]}
    assert made.mode == "texts"
    assert text_similarity(odd, ["a", "b"]) is None


def test_a_tokenizer_that_pads_to_the_longest_prompt_gets_texts(
    pipeline: OpenPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten(pipeline, monkeypatch, lambda prompt: max(len(text) for text in prompt))
    texts = [f"{number} " * (1 + number // GROUP) for number in range(GROUP + 1)]
    # Whatever comes first, and whatever is left to do: a run that goes on must draw as the one that was
    # interrupted.
    for order in ([0, GROUP], [GROUP, 0], [GROUP]):
        made = conditions(pipeline, texts, guided=False)
        assert [made.of([index]) for index in order] == [{"prompt": [texts[index]]} for index in order]
        assert made.mode == "texts"


def test_the_negative_prompt_must_fit_too(pipeline: OpenPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = type(pipeline.pipe).encode_prompt

    def shorter(self: Any, prompt: list[str], *arguments: Any, **named: Any) -> Any:
        found = encode(self, prompt, *arguments, **named)
        return tuple(
            one[:, :5] if named.get("negative_prompt") and one is not None and one.dim() == 3 else one
            for one in found
        )

    shorter.__signature__ = inspect.signature(encode)  # pyright: ignore[reportFunctionMemberAccess]
    monkeypatch.setattr(type(pipeline.pipe), "encode_prompt", shorter)
    # Positive and negative come from one call: a probe of the positive alone sees no difference.
    assert conditions(pipeline, negative_prompt="blurry").mode == "texts"
    assert conditions(pipeline, negative_prompt="").mode == "embeddings"
    assert conditions(pipeline, negative_prompt="blurry", guided=False).mode == "embeddings"


def test_an_encoder_that_contradicts_itself_is_reported(
    pipeline: OpenPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten(pipeline, monkeypatch, lambda prompt: 5 if "a ship" in prompt else 20)
    with pytest.raises(BadInputError, match="embeddings of different shapes, first for 'a cat'"):
        conditions(pipeline, guided=False).of([0])


def shorten(
    pipeline: OpenPipeline, monkeypatch: pytest.MonkeyPatch, length: Callable[[list[str]], int]
) -> None:
    """Cut what the text encoder gives to a length that depends on its texts."""
    encode = type(pipeline.pipe).encode_prompt

    def shorter(self: Any, prompt: list[str], *arguments: Any, **named: Any) -> Any:
        found = encode(self, prompt, *arguments, **named)
        return tuple(one[:, : length(prompt)] if one is not None and one.dim() == 3 else one for one in found)

    shorter.__signature__ = inspect.signature(encode)  # pyright: ignore[reportFunctionMemberAccess]
    monkeypatch.setattr(type(pipeline.pipe), "encode_prompt", shorter)


def test_similar_texts_are_near(pipeline: OpenPipeline) -> None:
    found = text_similarity(
        pipeline, ["a photo of a cat", "a photo of a cats", "a photo of an old locomotive"]
    )
    assert found is not None
    np.testing.assert_allclose(np.diag(found), 1.0, atol=1e-5)
    np.testing.assert_allclose(found, found.T, atol=1e-6)
    assert found[0, 1] > found[0, 2]
