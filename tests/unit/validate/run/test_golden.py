"""Golden vectors: what is written is found again, and a single changed value is located."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mixport.records.errors import BadInputError
from mixport.records.quantized_model import LoweredGraph
from mixport.records.signature import classifier
from mixport.records.targets import Target
from mixport.validate.interpreter.interpreter import Interpreter
from mixport.validate.run.golden import golden, recheck
from mixport.validate.run.session import CodeRunner
from tests.unit.validate.qdq_graphs import build_network, build_transformer

f32 = np.float32
Save = Callable[..., Path]


SIGNATURE = classifier((1, 3, 8, 8), classes=10)


@pytest.fixture(params=["network", "transformer", "static"])
def path(request: pytest.FixtureRequest, save: Save) -> Path:
    models = {
        "network": lambda: build_network().build("head_sum"),
        "transformer": lambda: build_transformer().build("logits_sum"),
        "static": lambda: build_network(shape=(1, 3, 8, 8)).build("head_sum"),
    }
    return save(models[request.param]())


def vectors(path: Path, target: Target) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    sites = Interpreter(path).sites
    x = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(f32)
    codes, output = golden(
        LoweredGraph(
            model_path=path,
            signature=classifier((1, 3, 8, 8), classes=10),
            opset=21,
            ir_version=10,
            sites=sites,
            decisions=(),
        ),
        x,
        target,
        verified=True,
    )
    assert tuple(codes) == sites
    return x, codes, output


def test_golden_vectors_are_found_again(path: Path, target: Target) -> None:
    x, codes, output = vectors(path, target)
    found = recheck(path, x, codes, output, target.session)
    result, divergence = found.result, found.divergence
    assert divergence is None
    assert (result.name, result.mismatches, result.tensors) == ("native", 0, len(codes) + 1)
    assert result.values == sum(array.size for array in codes.values()) + 2 * output.size


def test_without_a_verdict_the_interpreter_speaks(
    path: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, codes, output = vectors(path, target)
    honest, name = CodeRunner.run, next(name for name in codes if codes[name].ndim == 4)

    def lying(self: CodeRunner, batch: np.ndarray) -> dict[str, np.ndarray]:
        found = {site: array.copy() for site, array in honest(self, batch).items()}
        found[name][:, 0, 0, 0] ^= 1
        return found

    monkeypatch.setattr(CodeRunner, "run", lying)
    graph = LoweredGraph(
        model_path=path,
        signature=classifier((1, 3, 8, 8), classes=10),
        opset=21,
        ir_version=10,
        sites=tuple(codes),
        decisions=(),
    )
    found, again = golden(graph, x, target, verified=False)
    assert all(np.array_equal(found[site], codes[site]) for site in codes) and np.array_equal(again, output)
    assert not np.array_equal(golden(graph, x, target, verified=True)[0][name], codes[name])


def test_one_changed_code_is_located(path: Path, target: Target) -> None:
    x, codes, output = vectors(path, target)
    name = next(name for name in codes if codes[name].ndim == 4)
    codes[name][2, 1, 0, 0] ^= 1
    shuffled = dict(reversed(list(codes.items())))
    found = recheck(path, x, shuffled, output, target.session)
    result, divergence = found.result, found.divergence
    # The golden value is the wrong one here: the place is told all the same.
    assert found.located is not None and (found.located.site, found.located.index) == (name, (2, 1, 0, 0))
    assert result.mismatches == 1 and divergence is not None
    assert (divergence.site, divergence.index, divergence.inputs) == (name, (2, 1, 0, 0), "golden inputs")


def test_one_changed_output_is_located(path: Path, target: Target) -> None:
    x, codes, output = vectors(path, target)
    output[1, 7] = np.nextafter(output[1, 7], f32(np.inf))
    found = recheck(path, x, codes, output, target.session)
    result, divergence = found.result, found.divergence
    # The output is compared twice: with code outputs and without.
    assert result.mismatches == 2 and divergence is not None
    assert (divergence.site, divergence.index) == ("output", (1, 7))


def test_no_golden_codes_is_an_error(path: Path, target: Target) -> None:
    x, _, output = vectors(path, target)
    with pytest.raises(BadInputError, match="no golden codes"):
        recheck(path, x, {}, output, target.session)


def test_a_golden_tensor_that_the_model_lacks_is_named(path: Path, target: Target) -> None:
    x, codes, output = vectors(path, target)
    with pytest.raises(BadInputError, match="ghost is not a code tensor"):
        recheck(path, x, {**codes, "ghost": output}, output, target.session)
