"""One batch on every executor: who differs is named, and what lies behind islands is given, not counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import mixport
from mixport.records.errors import InvariantError
from mixport.records.quantized_model import LoweredGraph
from mixport.records.signature import classifier
from mixport.records.simulation import FloatEvaluation, SimulatedRun
from mixport.records.targets import SessionRules, Target
from mixport.validate.interpreter.interpreter import Interpreter
from mixport.validate.run.executors import Executors, simulation_version
from tests.unit.validate.qdq_graphs import build_network, build_transformer

f32 = np.float32
X = (np.random.default_rng(1).normal(size=(4, 3, 8, 8)) * 2).astype(f32)
Save = Callable[..., Path]
SITES = ("input_codes", "stem", "stem.requantised", "branch", "join", "join.requantised", "depthwise", "pool")


def lowered(path: Path, sites: tuple[str, ...] = SITES) -> LoweredGraph:
    signature = classifier((1, 3, 8, 8), classes=10)
    return LoweredGraph(
        model_path=path, signature=signature, opset=21, ir_version=10, sites=sites, decisions=()
    )


@dataclass
class Simulated:
    """The interpreter in the simulation's place; `spoil` changes its codes."""

    model: onnx.ModelProto
    spoil: Callable[[dict[str, Any]], object] = lambda codes: None
    floats: bool = True

    def simulate(self, images: np.ndarray, *, overrides: Mapping[str, np.ndarray]) -> SimulatedRun:
        execution = Interpreter(self.model).run(images, overrides=overrides)
        codes = {name: array.copy() for name, array in execution.codes.items()}
        if execution.output is not None:
            codes["output"] = execution.output.copy()
        self.spoil(codes)
        evaluated = {
            name: FloatEvaluation(values=array.astype(np.float64), error=0.0)
            for name, array in overrides.items()
        }
        return SimulatedRun(codes=codes, floats=evaluated if self.floats else {})


@pytest.fixture
def network(save: Save) -> LoweredGraph:
    return lowered(save(build_network().build("head_sum")))


def opened(network: LoweredGraph, target: Target, **options: Any) -> Executors:
    model = onnx.load(network.model_path)
    return Executors(network, target.session, simulation=Simulated(model, **options))


def test_all_executors_agree_with_tolerance_0(network: LoweredGraph, target: Target) -> None:
    executors = opened(network, target)
    assert executors.sites == SITES and executors.order == (*SITES, "output")
    assert executors.output == "output" and executors.fixed_batch is None
    found = executors.compare(X, inputs="images")
    assert found.located is None and found.batch is not None
    assert found.native.names == found.simulated.names == {*SITES, "output"}
    sizes = {name: array.size for name, array in found.batch.expected.items()}
    # The file as it ships gives its output once more.
    assert found.native.values == sum(sizes.values()) + sizes["output"]
    assert found.native.mismatches == found.simulated.mismatches == found.floats.mismatches == 0
    assert found.floats.names == {"output"}


def test_without_a_simulation_nothing_is_compared_with_it(network: LoweredGraph, target: Target) -> None:
    found = Executors(network, target.session, simulation=None).compare(X, inputs="images", offset=8)
    assert found.simulated.values == found.floats.values == 0 and found.native.mismatches == 0
    assert found.batch is not None and (found.batch.offset, found.batch.inputs) == (8, "images")
    np.testing.assert_array_equal(found.batch.images, X)


def test_a_wrong_simulation_is_named_with_its_place(network: LoweredGraph, target: Target) -> None:
    def spoil(codes: dict[str, Any]) -> None:
        codes["branch"][1, 2, 3, 4] ^= 1

    found = opened(network, target, spoil=spoil).compare(X, inputs="images", offset=8)
    first = found.simulated.first
    assert first is not None and found.native.first is None
    assert (first.site, first.index, first.executor) == ("branch", (9, 2, 3, 4), "simulation")
    assert abs(first.expected - first.got) == 1 and found.simulated.mismatches == 1


def test_a_runtime_that_does_not_fuse_is_located(network: LoweredGraph) -> None:
    unfused = SessionRules(optimization_level="disabled", threads=1)
    x = (np.random.default_rng(3).normal(size=(64, 3, 8, 8)) * 2).astype(f32)
    found = Executors(network, unfused, simulation=None).compare(x, inputs="images", offset=100)
    first, located = found.native.first, found.located
    assert first is not None and located is not None and found.native.mismatches > 0
    # The place is that of the whole run, not of the batch.
    assert located.site == first.site and located.index == first.index and first.index[0] >= 100
    assert located.executor == "onnxruntime" and located.cause in ("unfused-float", "tie")


def test_codes_behind_islands_are_given_and_not_counted(save: Save, target: Target) -> None:
    model = build_transformer().build("logits_sum")
    executors = opened(lowered(save(model), ("stream0", "stream1")), target)
    assert executors.sites == ("stream0", "stream1", "norm1", "attention")
    found = executors.compare(X, inputs="images")
    assert found.native.names == {"stream0", "stream1", "output"} and found.native.mismatches == 0
    assert found.batch is not None and {"norm1", "attention"}.isdisjoint(found.batch.expected)
    assert found.floats.names == {"norm1", "attention", "output"}
    given = {"norm1": np.full((4, 16, 8), 3, np.uint8), "attention": np.full((4, 2, 16, 16), 9, np.uint8)}
    expected = executors.expected(X, given)
    assert expected.keys() == found.batch.expected.keys() > {"stream0", "stream1", "output"}
    assert (expected["stream1"] != found.batch.expected["stream1"]).any()


def test_a_simulation_that_evaluates_no_island_is_refused(save: Save, target: Target) -> None:
    model = build_transformer().build("logits_sum")
    executors = opened(lowered(save(model), ("stream0",)), target, floats=False)
    with pytest.raises(InvariantError, match="no float operator in front of norm1"):
        executors.compare(X, inputs="images")


def test_a_simulation_of_other_sites_is_refused(network: LoweredGraph, target: Target) -> None:
    executors = opened(network, target, spoil=dict.clear)
    with pytest.raises(InvariantError, match=r"knows none of the sites input_codes, stem, .*, join$"):
        executors.compare(X, inputs="images")


@pytest.mark.parametrize("site", ["nobody", "head_sum", "output"])
def test_a_site_that_is_no_code_tensor_is_refused(site: str, network: LoweredGraph, target: Target) -> None:
    with pytest.raises(InvariantError, match=f"site {site} is no code tensor of .*, known: input_codes, "):
        Executors(lowered(network.model_path, (site,)), target.session, simulation=None)


def test_a_fixed_batch_is_told(save: Save, target: Target) -> None:
    path = save(build_network(shape=(2, 3, 8, 8)).build("head_sum"))
    assert Executors(lowered(path), target.session, simulation=None).fixed_batch == 2


def test_the_simulation_is_part_of_mixport() -> None:
    assert simulation_version() == f"mixport {mixport.__version__}"
