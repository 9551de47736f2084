from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mixport.calibration.recipe import CalibrationRecipe, FilterSettings, GeneratorSettings, PromptRecipe
from mixport.records.calibration_set import Preprocessing

CLASSES = ("cat", "dog", "frog", "ship", "truck")


class Steps:
    """A Progress that remembers."""

    def __init__(self) -> None:
        self.bars: list[tuple[str, int]] = []
        self.done: list[int] = []

    @contextmanager
    def track(self, description: str, *, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
        self.bars.append((description, total))
        self.done.append(0)
        place = len(self.done) - 1

        def advance(count: int) -> None:
            self.done[place] += count

        yield advance


@pytest.fixture
def steps() -> Steps:
    return Steps()


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of the shape of Stable Diffusion 1.x, 16 x 16 images. Tests must not change it."""
    from tests.diffusion import tiny_stable_diffusion

    return tiny_stable_diffusion(tmp_path_factory.mktemp("pipelines") / "tiny")


@pytest.fixture(scope="session")
def other_pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pipelines of other shapes by name. Tests must not change them."""
    from tests.diffusion import tiny_pixart, tiny_stable_diffusion_xl

    root = tmp_path_factory.mktemp("pipelines")
    return {"sdxl": tiny_stable_diffusion_xl(root / "sdxl"), "pixart": tiny_pixart(root / "pixart")}


def prompt_recipe(**changes: object) -> PromptRecipe:
    values: dict[str, object] = {"strategy": "mixup", "class_names": CLASSES, **changes}
    return PromptRecipe(**values)  # pyright: ignore[reportArgumentType]


def settings(folder: Path, **changes: object) -> GeneratorSettings:
    values: dict[str, object] = {
        "source": str(folder),
        "steps": 1,
        "guidance": 2.0,
        "batch": 4,
        "device": "cpu",
        **changes,
    }
    return GeneratorSettings(**values)  # pyright: ignore[reportArgumentType]


def drawn_recipe(
    folder: Path,
    *,
    images: int,
    size: tuple[int, int] = (16, 16),
    prompts: PromptRecipe | None = None,
    filters: FilterSettings | None = None,
    **changes: object,
) -> CalibrationRecipe:
    prompts = prompts or prompt_recipe()
    return CalibrationRecipe(
        method=prompts.strategy,
        source=None,
        images=images,
        seed=0,
        preprocessing=Preprocessing(size=size, mean=(0, 0, 0), std=(1, 1, 1)),
        prompts=prompts,
        generator=settings(folder, **changes),
        filters=filters or FilterSettings(),
    )
