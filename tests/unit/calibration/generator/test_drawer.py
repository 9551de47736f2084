from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mixport.calibration.generator.drawer import Drawer
from mixport.calibration.generator.open_pipeline import open_pipeline
from mixport.calibration.generator.request import resolve_request
from mixport.calibration.prompts.prompts import prompts
from mixport.records.errors import BadInputError
from tests.unit.calibration.conftest import prompt_recipe, settings

COUNT = 8

MakeDrawer = Callable[..., Drawer]


@pytest.fixture
def drawer(tmp_path: Path, tiny_pipeline: Path) -> MakeDrawer:
    def making(folder: Path | None = None, **changes: object) -> Drawer:
        request = resolve_request(
            prompt_recipe(), settings(folder or tiny_pipeline, **changes), cache=tmp_path
        )
        return Drawer(
            open_pipeline(request), request, prompts(request.prompts, count=COUNT), wanted=range(COUNT)
        )

    return making


class Wrapped:
    """A pipeline whose call is another function."""

    def __init__(self, pipe: Any, call: Callable[..., Any]) -> None:
        self._pipe, self._call = pipe, call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)

    def __call__(self, **arguments: Any) -> Any:
        return self._call(self._pipe, **arguments)


def wrap(made: Drawer, call: Callable[..., Any]) -> Drawer:
    made.opened = dataclasses.replace(made.opened, pipe=Wrapped(made.opened.pipe, call))
    return made


def short_of_memory(most: int, error: Exception) -> tuple[Callable[..., Any], list[int]]:
    """A call that fails above `most` images, and the sizes it saw."""
    sizes: list[int] = []

    def call(pipe: Any, **arguments: Any) -> Any:
        sizes.append(len(arguments["generator"]))
        if sizes[-1] > most:
            raise error
        return pipe(**arguments)

    return call, sizes


def test_a_batch_of_images(drawer: MakeDrawer) -> None:
    made = drawer().draw(range(4))
    assert (made.images.shape, made.images.dtype, made.pieces, made.blackened) == (
        (4, 16, 16, 3),
        np.uint8,
        (4,),
        (),
    )
    assert len({image.tobytes() for image in made.images}) == 4


@pytest.mark.parametrize("shape", ["sdxl", "pixart"])
def test_other_shapes_take_the_same_path(
    drawer: MakeDrawer, other_pipelines: dict[str, Path], shape: str
) -> None:
    # One step is a case of its own in PixArt, for a scheduler of its own.
    made = drawer(other_pipelines[shape], steps=2)
    assert made.draw(range(4)).images.shape == (4, 16, 16, 3)
    assert made.conditions.mode == "embeddings"


def test_the_size_asked_for_is_the_size_drawn(drawer: MakeDrawer) -> None:
    assert drawer(size=(24, 16)).draw(range(2)).images.shape == (2, 24, 16, 3)


def test_the_same_request_gives_the_same_bytes(drawer: MakeDrawer) -> None:
    np.testing.assert_array_equal(drawer().draw(range(4)).images, drawer().draw(range(4)).images)


@pytest.mark.parametrize(
    "scheduler", [None, "EulerAncestralDiscreteScheduler", "DDPMScheduler", "LCMScheduler"]
)
def test_an_image_does_not_depend_on_its_company(drawer: MakeDrawer, scheduler: str | None) -> None:
    """But for rounding: sums run in another order in a batch of another size."""
    together, alone = (
        drawer(scheduler=scheduler, steps=3).draw(range(4)).images,
        drawer(scheduler=scheduler, steps=3),
    )
    for index in range(4):
        difference = np.abs(alone.draw([index]).images[0].astype(int) - together[index])
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01


def test_every_image_has_its_own_seed(drawer: MakeDrawer) -> None:
    """Other texts alone would make the images differ too: what reaches the pipeline is looked at."""
    seen: list[tuple[int, list[int]]] = []

    def call(pipe: Any, **arguments: Any) -> Any:
        seen.append((torch.initial_seed(), [one.initial_seed() for one in arguments["generator"]]))
        return pipe(**arguments)

    wrap(drawer(), call).draw(range(2, 5))
    seeds = [one.seed for one in prompts(prompt_recipe(), count=COUNT)[2:5]]
    assert seen == [(seeds[0], seeds)], "the first one seeds what schedulers draw from the global stream"


def test_nothing_is_left_in_the_global_stream(drawer: MakeDrawer) -> None:
    made = drawer()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    made.draw(range(2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you "
            "tried to allocate 9 bytes"
        ),
    ],
)
def test_out_of_memory_halves_the_pieces_and_goes_on(drawer: MakeDrawer, error: Exception) -> None:
    call, sizes = short_of_memory(2, error)
    made = wrap(drawer(batch=5), call)
    first = made.draw(range(5))
    assert first.pieces == (2, 2, 1)
    assert made.draw(range(5, 8)).pieces == (2, 1)
    assert sizes == [5, 3, 2, 2, 1, 2, 1]
    whole = drawer(batch=5).draw(range(5)).images
    assert np.abs(first.images.astype(int) - whole).max() <= 1


def test_out_of_memory_for_one_image_is_explained(drawer: MakeDrawer) -> None:
    call, sizes = short_of_memory(0, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(BadInputError, match="memory is not enough for one image") as caught:
        wrap(drawer(), call).draw(range(4))
    assert sizes == [4, 2, 1]
    assert "--gen-size" in str(caught.value.hint)


def changed(change: Callable[[np.ndarray], None], **more: Any) -> Callable[..., Any]:
    def call(pipe: Any, **arguments: Any) -> Any:
        output = pipe(**arguments)
        change(output.images)
        for name, value in more.items():
            output[name] = value
        return output

    return call


def spoil(images: np.ndarray) -> None:
    images[1, 3, 3, 0] = np.nan


def blacken(images: np.ndarray) -> None:
    images[1] = 0.0


@pytest.mark.parametrize(("change", "what"), [(spoil, "holds NaN"), (blacken, "has one value everywhere")])
def test_broken_images_are_reported_with_the_repair(
    drawer: MakeDrawer, change: Callable[[np.ndarray], None], what: str
) -> None:
    for dtype, repair in (("bfloat16", "--gen-dtype float32"), ("float32", "--gen-guidance")):
        with pytest.raises(BadInputError, match=rf"in {dtype}: image 1 \(.*\) {what}") as caught:
            wrap(drawer(dtype=dtype), changed(change)).draw(range(2))
        assert repair in str(caught.value.hint)


def test_what_the_safety_checker_blackens_is_recorded(drawer: MakeDrawer) -> None:
    made = wrap(drawer(), changed(blacken, nsfw_content_detected=[False, True])).draw([0, 1])
    assert made.blackened == (1,)


def test_a_pipeline_that_fails_is_named(drawer: MakeDrawer) -> None:
    with pytest.raises(BadInputError, match=r"fails while drawing: ValueError: .*divisible by 8"):
        drawer(size=(17, 16)).draw(range(2))


def test_a_pipeline_without_images_is_refused(drawer: MakeDrawer) -> None:
    with pytest.raises(BadInputError, match="gives no RGB images"):
        wrap(drawer(), lambda _pipe, **_: object()).draw(range(2))
