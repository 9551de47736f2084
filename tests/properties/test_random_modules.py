"""Random modules through the whole pipeline: exact and right at two optimisation levels, or refused with a
repair.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st
from torch import nn

from mixport.pipeline.build_bundle import build_all
from mixport.pipeline.options.build_options import BuildOptions
from mixport.records.errors import MixportError
from tests.random_modules import HEADS, STEPS, RandomModule, Recipe

EXAMPLES = int(os.environ.get("MIXPORT_RANDOM_MODULES", "30"))
"""Of the sweep."""
FEW = 3
"""How many modules are drawn; a longer run sets it."""
_LEAST_DB = 0.0
"""Sharp functions (squares of squares, attention on large scores) lose much at 8 bits. Below, nothing is left
of the model.
"""
_APART_DB = 6.0
"""The two levels round differently here and there; a wrong operator at one of them shows as more."""
_RIGHT_DB = 70.0
"""Above, the levels differ by single codes of few."""

recipes = st.builds(
    Recipe,
    height=st.integers(5, 16),
    width=st.integers(5, 16),
    steps=st.lists(
        st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 1 << 16)), min_size=1, max_size=7
    ).map(tuple),
    head=st.sampled_from(HEADS),
)
schemes = st.sampled_from(["w8a8", "w8a8", "w4a8"])


def decibels(wanted: np.ndarray, got: np.ndarray) -> float:
    """Power of the outputs over that of the error: images of noise hardly vary, and are not to."""
    return 10 * float(
        np.log10(max(np.square(wanted).sum(), 1e-30) / max(np.square(wanted - got).sum(), 1e-30))
    )


def at_level(model: Path, images: np.ndarray, level: str) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"input": image[None]})[0] for image in images])


def check(module: RandomModule, folder: Path, *, scheme: str, portable: bool = True) -> str:
    """Build it; what came of it in a word.

    Raises:
        AssertionError: a mismatch, or a wrong number called exact. Anything that is no MixportError of the
            user's passes through.
    """
    options = BuildOptions.of({
        "model": module_name(module), "calib": "noise", "images": 16, "iters": 0, "scheme": scheme,
        "validation_images": 4,
        "out": folder / "out", "cache": folder / "cache", "portable": portable,
    })  # fmt: skip
    try:
        (outcome,) = build_all(options)
    except MixportError as error:
        assert error.exit_code != 70, f"{error}"
        assert error.hint, f"no hint: {error}"
        return f"refused: {error}"
    manifest = outcome.bundle.manifest
    assert manifest.validation.verdict == "exact", outcome.failures
    images = np.load(folder / "out" / "golden" / "inputs.npz")["input"]
    with torch.no_grad():
        wanted = module(torch.as_tensor(images)).numpy()
    plain, fused = (
        decibels(wanted, at_level(folder / "out" / "model.onnx", images, f"ORT_ENABLE_{level}"))
        for level in ("BASIC", "ALL")
    )
    # Four bits rounded to nearest may cost everything.
    assert scheme != "w8a8" or min(plain, fused) > _LEAST_DB, (
        f"{plain:.1f} dB at level basic, {fused:.1f} dB at level all"
    )
    assert abs(plain - fused) < _APART_DB or min(plain, fused) > _RIGHT_DB, (
        f"{plain:.1f} dB at level basic, {fused:.1f} dB at level all"
    )
    return "exact"


_MODULES: dict[str, nn.Module] = {}


def module_name(module: nn.Module) -> str:
    """The name under which `current` gives the module back to the build."""
    _MODULES["current"] = module
    return f"{__name__}:current"


def current() -> nn.Module:
    """The module under test, as a factory."""
    return _MODULES["current"]


@settings(max_examples=FEW, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(recipe=recipes, scheme=schemes)
def test_random_modules(recipe: Recipe, scheme: str) -> None:
    build_random(recipe, scheme)


@pytest.mark.sweep
@pytest.mark.timeout(240 * EXAMPLES)  # whole builds: a few seconds each
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(recipe=recipes, scheme=schemes)
def test_more_random_modules(recipe: Recipe, scheme: str) -> None:
    build_random(recipe, scheme)


def build_random(recipe: Recipe, scheme: str) -> None:
    module = RandomModule(recipe).eval()
    assume(module.varies())
    note(f"steps taken: {module.taken}")
    with TemporaryDirectory(prefix="mixport-random-") as folder:
        check(module, Path(folder), scheme=scheme)
