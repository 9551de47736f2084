from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before anything imports torch: two workers with as many threads as cores each would wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real models and images; the test is skipped, with the reason, where there is none."""
    default = REPOSITORY.parent / "shared" / "data"
    folder = Path(os.environ.get("MIXPORT_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder}: set MIXPORT_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cache shared by the tests that build the tiny model, so that only the first one waits."""
    return tmp_path_factory.mktemp("tiny-cache")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_cache: Path) -> Path:
    """Bundle of tests.models:tiny at w4a8, rounded to nearest. Tests must not change it."""
    from mixport.pipeline.build_bundle import build

    folder = tmp_path_factory.mktemp("tiny") / "bundle"
    build(
        "tests.models:tiny",
        calib="noise",
        images=16,
        iters=0,
        validation_images=8,
        out=folder,
        cache=tiny_cache,
    )
    return folder
