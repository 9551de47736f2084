"""validate(): the verdict, the claim, and faults that must be found where they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mixport.records.errors import BadInputError, InvariantError
from mixport.records.progress import SilentProgress
from mixport.records.quantized_model import LoweredGraph
from mixport.records.signature import classifier
from mixport.records.simulation import FloatEvaluation, SimulatedRun
from mixport.records.targets import SessionRules, Target
from mixport.validate.interpreter.interpreter import Interpreter
from mixport.validate.proof.prove import prove
from mixport.validate.run.cut_islands import cut_islands
from mixport.validate.run.session import CodeRunner, open_session
from mixport.validate.validate import validate
from tests.unit.validate.qdq_graphs import QdqBuilder, build_network, build_transformer

f32 = np.float32
SIGNATURE = classifier((1, 3, 8, 8), classes=10)


UNOPTIMISED = SessionRules(optimization_level="disabled", threads=1)
FLOATS = "float operators: islands, and the output unfused"
Save = Callable[..., Path]


class Simulated:
    """A simulation: the interpreter on a file of its own, which stands for what the quantiser meant; its
    float islands run unoptimised.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.interpreter = Interpreter(model)
        self.runner = CodeRunner(model, self.interpreter.sites, policy=UNOPTIMISED)

    def simulate(self, images: np.ndarray, *, overrides: Mapping[str, np.ndarray]) -> SimulatedRun:
        execution = self.interpreter.run(images, overrides=overrides)
        output = {} if execution.output is None else {"output": execution.output}
        plan, entries = self.interpreter.plan, self.interpreter.entry_sites
        cut = cut_islands(plan, sites=self.interpreter.sites, outputs=(*entries, "output"))
        feeds = {
            port: images if name == "input" else execution.codes[name] for port, name in cut.inputs.items()
        }
        found = open_session(cut.model, policy=UNOPTIMISED).run(list(cut.outputs), feeds)
        values = {
            name: FloatEvaluation(values=array.astype(np.float64), error=0.0)
            for name, array in zip(cut.outputs, found, strict=True)
        }
        return SimulatedRun(codes={**execution.codes, **output}, floats=values)


def lowered(path: Path, *, sites: tuple[str, ...] | None = None) -> LoweredGraph:
    names = Interpreter(path).sites if sites is None else sites
    return LoweredGraph(
        model_path=path,
        signature=classifier((1, 3, 8, 8), classes=10),
        opset=21,
        ir_version=10,
        sites=names,
        decisions=(),
    )


def images(count: int = 6) -> np.ndarray:
    return (np.random.default_rng(1).normal(size=(count, 3, 8, 8)) * 2).astype(f32)


def changed(
    model: onnx.ModelProto, tensor: str, change: Callable[[np.ndarray], np.ndarray]
) -> onnx.ModelProto:
    """A copy with one initialiser changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for initializer in copy.graph.initializer:
        if initializer.name == tensor:
            initializer.CopyFrom(
                numpy_helper.from_array(change(numpy_helper.to_array(initializer).copy()), tensor)
            )
            return copy
    raise KeyError(tensor)


def input_of(model: onnx.ModelProto, output: str, position: int) -> str:
    """Initialiser name at an input of the node that gives a tensor."""
    return next(node for node in model.graph.node if output in node.output).input[position]


def test_a_network_is_exact(save: Save, target: Target) -> None:
    model = build_network().build("head_sum")
    report = validate(
        lowered(save(model)),
        images(),
        target,
        simulation=Simulated(model),
        progress=SilentProgress(),
        prove=prove,
        batch=4,
    )
    assert report.verdict == "exact" and report.divergences == ()
    assert [(r.name, r.tensors, r.mismatches) for r in report.runtimes] == [
        ("native", 9, 0),
        ("simulation", 9, 0),
    ]
    assert (
        report.claim.startswith("All ")
        and "onnxruntime" in report.claim
        and "0 float islands excluded" in report.claim
    )
    assert (
        "the simulation" in report.claim
        and "optimisation level all, 1 thread;" in report.claim
        and "6 integer operators" in report.claim
    )
    assert report.session_policy == {"optimization_level": "all", "threads": 1, "config": {}}
    assert report.site_checks["model: adversarial images"]["sites"] == 9
    assert report.site_checks["conv: near-tie"]["mismatches"] == 0
    assert report.proofs["int32_accumulators"] == {
        "holds": True,
        "sites": 4,
        "exceptions": [],
        "largest": 256563,
        "largest_site": "stem",
        "limit": 2**31 - 1,
    }
    assert report.audit.float_compute == ()


def test_a_transformer_is_exact_outside_its_islands(save: Save, target: Target) -> None:
    model = build_transformer().build("logits_sum")
    report = validate(lowered(save(model)), images(), target, simulation=Simulated(model))
    assert report.verdict == "exact"
    assert report.float_islands == ("norm1 (LayerNormalization)", "softmax (Softmax)")
    # Both islands, and the output at optimisation level basic.
    assert report.site_checks[FLOATS]["sites"] == 3 and report.site_checks[FLOATS]["mismatches"] == 0
    assert "2 float islands excluded" in report.claim
    # 13 sites and the output, without the two entry sites.
    assert report.runtimes[0].tensors == 12
    assert report.proofs == {}


def test_a_static_batch_is_exact(save: Save, target: Target) -> None:
    model = build_network(shape=(1, 3, 8, 8)).build("head_sum")
    assert validate(lowered(save(model)), images(3), target).verdict == "exact"


def scale_of_reader(model: onnx.ModelProto, codes: str) -> str:
    """Scale of the DequantizeLinear that reads a code tensor."""
    return next(
        node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] == codes
    ).input[1]


FAULTS: dict[str, tuple[Callable[[onnx.ModelProto], str], Callable[[np.ndarray], np.ndarray], str]] = {
    "weight": (lambda m: "depthwise.weight", lambda a: a + np.eye(3, dtype=np.int8), "depthwise"),
    "bias": (lambda m: "branch.bias", lambda a: a + 3000, "branch"),
    "output scale": (lambda m: input_of(m, "stem", 1), lambda a: a * f32(1.5), "stem"),
    "input scale": (lambda m: scale_of_reader(m, "stem.requantised"), lambda a: a * f32(1.5), "branch"),
    "zero point": (lambda m: input_of(m, "join", 2), lambda a: a + np.uint8(1), "join"),
    "clip": (lambda m: input_of(m, "join.requantised", 2), lambda a: a - np.uint8(50), "join.requantised"),
    "head": (lambda m: "head.weight", lambda a: a // 2, "output"),
}


@pytest.mark.parametrize(("find", "change", "site"), FAULTS.values(), ids=FAULTS.keys())
def test_a_corrupted_integer_is_located(
    find: Callable[[onnx.ModelProto], str],
    change: Callable[[np.ndarray], np.ndarray],
    site: str,
    save: Save,
    target: Target,
    request: pytest.FixtureRequest,
) -> None:
    model = build_network(bits=8, clip=63).build("head_sum")
    broken = changed(model, find(model), change)
    report = validate(lowered(save(broken)), images(), target, simulation=Simulated(model))
    assert report.verdict == "mismatch"
    found = {(d.executor, d.site, d.inputs) for d in report.divergences if d.inputs == "images"}
    assert ("simulation", site, "images") in found and {d[1] for d in found} == {site}
    assert report.runtimes[1].mismatches > 0
    # The runtime reads the same broken file as the interpreter; only a wrong bias scale makes it compute
    # otherwise.
    input_scale = "input scale" in request.node.name
    assert (report.runtimes[0].mismatches > 0) == input_scale
    assert any("is not x_scale * w_scale" in d.why for d in report.audit.float_compute) == input_scale
    assert f"first at {site}[" in report.claim


@pytest.mark.parametrize("site", ["patches", "v", "context", "projection", "stream1", "mlp.input", "output"])
def test_islands_do_not_hide_a_fault_behind_them(site: str, save: Save, target: Target) -> None:
    model = build_transformer().build("logits_sum")
    tensor = {
        "patches": "patches.bias",
        "v": "v.bias",
        "projection": "projection.bias",
        "context": input_of(model, "context", 1),
        "stream1": input_of(model, "stream1", 1),
        "mlp.input": input_of(model, "mlp.input", 1),
        "output": "logits.bias",
    }[site]
    broken = changed(model, tensor, lambda a: a * a.dtype.type(2) if a.dtype == f32 else a + 5000)
    report = validate(lowered(save(broken)), images(), target, simulation=Simulated(model))
    assert report.verdict == "mismatch"
    assert report.divergences[0].site == site


@pytest.mark.parametrize(("operator", "site"), [("LayerNormalization", "norm1"), ("Mul", "attention")])
def test_a_float_island_that_computes_something_else_is_found(
    operator: str, site: str, save: Save, target: Target
) -> None:
    model = build_transformer().build("logits_sum")
    factor = next(node for node in model.graph.node if node.op_type == operator).input[1]
    broken = changed(model, factor, lambda a: a * f32(1.5))
    report = validate(lowered(save(broken)), images(), target, simulation=Simulated(model))
    assert report.verdict == "mismatch"
    assert (report.divergences[0].site, report.divergences[0].executor) == (site, "onnxruntime, float island")


def test_a_float_output_that_is_computed_otherwise_is_found(save: Save, target: Target) -> None:
    def network(axis: int) -> onnx.ModelProto:
        b = build_network()
        return b.build(b.node("Softmax", ["head_sum"], axis=axis))

    report = validate(lowered(save(network(1))), images(), target, simulation=Simulated(network(1)))
    assert report.verdict == "exact" and report.site_checks[FLOATS]["sites"] == 1
    report = validate(lowered(save(network(0))), images(), target, simulation=Simulated(network(1)))
    assert report.verdict == "mismatch" and report.divergences[0].site == "output"


@pytest.mark.parametrize("site", ["stem", "join.requantised", "pool"])
def test_one_wrong_code_of_the_runtime_is_found(
    site: str, save: Save, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = CodeRunner.run

    def lying(self: CodeRunner, batch: np.ndarray) -> dict[str, np.ndarray]:
        found = {name: array.copy() for name, array in honest(self, batch).items()}
        found[site][-1, 3, 0, 0] ^= 1
        return found

    monkeypatch.setattr(CodeRunner, "run", lying)
    report = validate(lowered(save(build_network().build("head_sum"))), images(6), target, batch=4)
    assert report.verdict == "mismatch"
    (divergence,) = report.divergences
    assert (divergence.site, divergence.index, divergence.executor) == (site, (3, 3, 0, 0), "onnxruntime")
    assert abs(divergence.expected - divergence.got) == 1
    # Two batches of images, and four of adversarial images.
    assert report.runtimes[0].mismatches == 2 + 4


def test_a_deployed_file_that_is_optimised_otherwise_is_found(save: Save, target: Target) -> None:
    b = QdqBuilder()
    model = b.build(b.node("Neg", [b.qdq(b.qdq("input", "first", 0.03, 128), "second", 0.11, 120)]))
    report = validate(lowered(save(model)), images(), target)
    assert report.verdict == "mismatch"
    assert report.divergences[0].executor == "onnxruntime, without code outputs"


@pytest.mark.parametrize(
    "bad", [np.zeros((0, 3, 8, 8), f32), np.zeros((1, 3, 8, 8)), np.zeros((3, 8, 8), f32)], ids=str
)
def test_bad_images_are_refused(bad: np.ndarray, save: Save, target: Target) -> None:
    with pytest.raises(BadInputError, match="allowed float32"):
        validate(lowered(save(build_network().build("head_sum"))), bad, target)


def test_a_site_that_the_file_lacks_is_our_bug(save: Save, target: Target) -> None:
    with pytest.raises(InvariantError, match="nowhere"):
        validate(
            lowered(save(build_network().build("head_sum")), sites=("stem", "nowhere")), images(), target
        )


def test_a_simulation_that_knows_no_site_is_our_bug(save: Save, target: Target) -> None:
    class Mute:
        def simulate(self, images: np.ndarray, *, overrides: Mapping[str, np.ndarray]) -> SimulatedRun:
            return SimulatedRun(codes={}, floats={})

    with pytest.raises(InvariantError, match="none of the sites"):
        validate(lowered(save(build_network().build("head_sum"))), images(), target, simulation=Mute())


def test_the_deployed_file_is_run_on_every_image(save: Save, target: Target) -> None:
    """Pairs that the runtime merges only where no code tensor is an output; their codes differ for the last
    image alone.
    """
    b = QdqBuilder(shape=("N", 3, 8, 8))
    first = b.qdq("input", "first", 0.02, 0)
    second = b.quantise(b.node("Mul", [first, b.constant(f32(1))]), "second", 0.013, 0)
    model = b.build(b.dequantise(second))
    some = np.zeros((5, 3, 8, 8), f32)
    some[4, 2, 7, 6] = 0.031  # 2 steps of 0.02, and then 3 of 0.013; at once it is 2 of 0.013
    report = validate(lowered(save(model)), some, target, batch=1)
    found = [one for one in report.divergences if one.inputs == "images"]
    assert [(one.executor, one.index) for one in found] == [
        ("onnxruntime, without code outputs", (4, 2, 7, 6))
    ]
