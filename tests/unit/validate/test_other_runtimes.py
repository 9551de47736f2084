"""Further runtimes in validate() and recheck(): what they run, what counts, and where and why they depart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

from mixport.records.errors import RuntimeUnavailableError
from mixport.records.quantized_model import LoweredGraph
from mixport.records.runtime import RuntimeAnswer, RuntimeInfo, RuntimeJob
from mixport.records.signature import classifier
from mixport.records.targets import SessionRules, Target
from mixport.records.validation_report import Cause, Localisation, ValidationReport
from mixport.validate.interpreter.interpreter import Interpreter
from mixport.validate.run.golden import golden, recheck
from mixport.validate.validate import validate
from tests.unit.validate.planted import Arrays, Fault, Planted
from tests.unit.validate.qdq_graphs import QdqBuilder, build_network, build_transformer

f32 = np.float32
Save = Callable[..., Path]
SIGNATURE = classifier((1, 3, 8, 8), classes=10)


UNFUSED = SessionRules(optimization_level="disabled", threads=1)


def lowered(path: Path) -> LoweredGraph:
    return LoweredGraph(
        model_path=path,
        signature=classifier((1, 3, 8, 8), classes=10),
        opset=21,
        ir_version=10,
        sites=Interpreter(path).sites,
        decisions=(),
    )


def images(count: int = 6) -> np.ndarray:
    return (np.random.default_rng(1).normal(size=(count, 3, 8, 8)) * 2).astype(f32)


def checked(
    model: onnx.ModelProto, runtime: Planted, save: Save, target: Target
) -> tuple[ValidationReport, Localisation | None]:
    report = validate(lowered(save(model)), images(), target, runtimes=(runtime,))
    assert report.runtimes[0].mismatches == 0
    return report, report.localisations[0] if report.localisations else None


@pytest.mark.parametrize(
    "build", [build_network, lambda: build_network(bits=2), lambda: build_network(shape=(1, 3, 8, 8))]
)
def test_an_honest_runtime_is_exact_in_one_call(
    build: Callable[[], QdqBuilder], save: Save, target: Target
) -> None:
    calls: list[int] = []
    report, place = checked(build().build("head_sum"), Planted(calls=calls), save, target)
    assert report.verdict == "exact" and place is None
    native, other = report.runtimes
    assert (other.name, other.version, other.cpu, other.tensors, other.mismatches) == (
        "planted",
        "fakeort 9.9",
        "abacus",
        9,
        0,
    )
    # Images and adversarial images as natively, and every crafted unit besides.
    assert other.values == native.values + sum(
        c["values"] for kind, c in report.site_checks.items() if not kind.startswith("model:")
    )
    units = len(
        {unit.output for unit in Interpreter(save(build().build("head_sum"))).units if not unit.uncut}
    )
    assert calls == [2 + units]
    assert "the same on planted (fakeort 9.9, abacus" in report.claim


def test_islands_get_each_runtime_s_own_codes(save: Save, target: Target) -> None:
    def other_island(outputs: dict[str, np.ndarray], feeds: Arrays) -> None:
        # What stands directly behind an island is nobody's claim; what follows from it is, and stays as it
        # was: a fault.
        if "norm1" in outputs:
            outputs["norm1"] = outputs["norm1"] ^ 1

    honest, _ = checked(build_transformer().build("logits_sum"), Planted(), save, target)
    assert honest.verdict == "exact"
    report, place = checked(build_transformer().build("logits_sum"), Planted(other_island), save, target)
    assert report.verdict == "mismatch" and place is not None
    assert place.site in ("q", "k", "v") and place.cause != "refused"


def test_only_the_first_images_go_elsewhere(save: Save, target: Target) -> None:
    seen: list[int] = []

    def count(outputs: dict[str, np.ndarray], feeds: Arrays) -> None:
        if "stem" in outputs and "input" in feeds:
            seen.append(len(feeds["input"]))

    report = validate(
        lowered(save(build_network().build("head_sum"))), images(45), target, runtimes=(Planted(count),)
    )
    assert report.verdict == "exact"
    assert max(seen) == 4 and sum(seen) == 32 + report.site_checks["model: adversarial images"]["values"] // (
        report.runtimes[0].values // (45 + 14)
    )


def change(site: str, difference: int, place: tuple[int, ...]) -> Fault:
    def fault(outputs: dict[str, np.ndarray], feeds: Arrays) -> None:
        if site in outputs and "input" in feeds:
            array = outputs[site]
            array[place] = int(array[place]) + (
                difference if int(array[place]) + difference in range(256) else -difference
            )

    return fault


def swap(outputs: dict[str, np.ndarray], feeds: Arrays) -> None:
    if "stem" in outputs and "input" in feeds:
        outputs["stem"] = outputs["stem"][:, [1, 0, *range(2, 8)]]


def shorten(outputs: dict[str, np.ndarray], feeds: Arrays) -> None:
    if "branch" in outputs and "input" in feeds:
        outputs["branch"] = outputs["branch"][:, :, :4]


FAULTS: dict[str, tuple[Planted, str, str, Cause]] = {
    "add": (Planted(change("join", 1, (0, 2, 3, 3))), "join", "Add", "fused-multiply-add"),
    "far": (Planted(change("branch", 50, (0, 2, 3, 3))), "branch", "Conv", "other-data"),
    "swapped": (Planted(swap), "stem", "Conv", "swapped-channel"),
    "shape": (Planted(shorten), "branch", "Conv", "shape"),
    "input": (
        Planted(change("input_codes", 1, (0, 0, 1, 1))),
        "input_codes",
        "QuantizeLinear",
        "float-operators",
    ),
    "refused": (Planted(refuses="stem"), "input_codes", "QuantizeLinear", "refused"),
}


@pytest.mark.parametrize(("runtime", "site", "op", "cause"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_placed_and_explained(
    runtime: Planted, site: str, op: str, cause: Cause, save: Save, target: Target
) -> None:
    report, place = checked(build_network(bits=8, clip=63).build("head_sum"), runtime, save, target)
    assert report.verdict == "mismatch" and report.runtimes[1].mismatches > 0
    assert place is not None and (place.site, place.op, place.cause) == (site, op, cause)
    assert place.executor == "planted" and place.repair
    assert f"planted differs first at {site}" in place.text()
    assert report.divergences[0].executor == "planted"


def test_the_codes_and_the_sum_of_a_place_are_exact(save: Save, target: Target) -> None:
    model = build_network(bits=8, clip=63).build("head_sum")
    _, place = checked(model, Planted(change("join", 1, (0, 2, 3, 3))), save, target)
    codes = Interpreter(model).run(images()[:4]).codes
    assert place is not None and place.index == (0, 2, 3, 3)
    assert {one.name: one.code for one in place.operands} == {
        name: int(codes[name][0, 2, 3, 3]) for name in ("branch", "stem")
    }
    _, place = checked(model, Planted(change("stem", 50, (0, 2, 0, 0))), save, target)
    assert place is not None and [(one.name, one.count) for one in place.operands] == [("input_codes", 27)]
    # The corner reads padding: the sum by another way than the localiser's.
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    padded = np.pad(codes["input_codes"][0].astype(np.int64) - 128, ((0, 0), (1, 1), (1, 1)))
    weights = constants["stem.weight"].astype(np.int64)
    assert place.accumulator == int((padded[:, :3, :3] * weights[2]).sum()) + int(constants["stem.bias"][2])
    assert place.exact is not None and place.expected == np.clip(np.rint(place.exact), 0, 255)


def one_layer(weights: list[int], *, x_scale: float = 1.0, y_scale: float = 1.0) -> onnx.ModelProto:
    """A 1x1 convolution of three channels whose sums are easy to tell."""
    b = QdqBuilder(shape=("N", 3, 1, 1))
    b.quantise("input", "x", x_scale, 0)
    w = b.weight(np.array(weights).reshape(1, 3, 1, 1), np.ones(1, f32), name="w")
    b.quantise(b.node("Conv", [b.dequantise("x"), w], name="layer"), "y", y_scale, 0)
    return b.build(b.dequantise("y"))


def place_of(
    model: onnx.ModelProto, x: list[float], fault: Callable[[int], int], save: Save, target: Target
) -> Localisation:
    def change_y(outputs: dict[str, np.ndarray], feeds: Arrays) -> None:
        if "y" in outputs and "input" in feeds:
            outputs["y"][0, 0, 0, 0] = fault(int(outputs["y"][0, 0, 0, 0])) % 256

    batch = np.array(x, f32).reshape(1, 3, 1, 1)
    report = validate(lowered(save(model)), batch, target, runtimes=(Planted(change_y),))
    assert report.runtimes[0].mismatches == 0
    return report.localisations[0]


def test_a_rounding_tie_is_told_from_other_arithmetic(save: Save, target: Target) -> None:
    model = one_layer([1, 2, 4], y_scale=2.0)
    tie = place_of(model, [1, 1, 1], lambda code: code - 1, save, target)
    assert (tie.cause, tie.accumulator, tie.exact, tie.expected, tie.got) == ("tie", 7, 3.5, 4, 3)
    clear = place_of(model, [2, 1, 1], lambda code: code - 1, save, target)
    assert (clear.cause, clear.accumulator, clear.exact) == ("other-arithmetic", 8, 4.0)


def test_a_saturated_pair_is_recomputed(save: Save, target: Target) -> None:
    # 255 * 127 * 2 = 64770 saturates to 32767.
    model = one_layer([127, 127, 1], y_scale=300.0)
    place = place_of(model, [255, 255, 3], lambda code: round((32767 + 3) / 300), save, target)
    assert (place.cause, place.accumulator, place.expected, place.got) == ("pair-saturation", 64773, 216, 109)
    assert (
        "64770, beyond int16; saturating them gives the very value" in place.explanation
        and "7 bits" in place.repair
    )
    other = place_of(model, [255, 255, 3], lambda code: 7, save, target)
    assert other.cause == "pair-saturation" and "the very value" not in other.explanation


def test_a_real_runtime_that_does_not_fuse_is_told(save: Save, target: Target) -> None:
    # Scales whose float32 product is inexact: integer kernels and float arithmetic part at ties.
    b = QdqBuilder(shape=("N", 16, 8, 8))
    b.quantise("input", "x", 0.1, 0)
    b.quantise(b.layer("Conv", "x", (8, 16, 3, 3), name="layer"), "y", 0.37, 128)
    report = validate(
        lowered(save(b.build(b.dequantise("y")))),
        np.random.default_rng(0).uniform(0, 25, (2, 16, 8, 8)).astype(f32),
        target,
        runtimes=(Planted(policy=UNFUSED),),
    )
    assert report.verdict == "mismatch" and report.runtimes[0].mismatches == 0
    (place,) = report.localisations
    assert (place.site, place.op) == ("y", "Conv") and place.cause in ("unfused-float", "tie")
    assert abs(place.got - place.expected) == 1 and place.exact is not None
    assert abs(abs(place.exact - np.floor(place.exact)) - 0.5) < 1e-3


def test_a_product_of_two_inputs_is_recomputed(save: Save, target: Target) -> None:
    report, place = checked(
        build_transformer().build("logits_sum"), Planted(change("context", 40, (1, 1, 5, 2))), save, target
    )
    assert report.verdict == "mismatch" and place is not None
    assert (place.site, place.op, place.cause, place.index) == (
        "context",
        "MatMul",
        "other-data",
        (1, 1, 5, 2),
    )
    assert place.exact is not None and place.accumulator is not None
    assert place.expected == np.clip(np.rint(place.exact), 0, 255)


def test_a_runtime_that_breaks_off_stops_the_validation(save: Save, target: Target) -> None:
    def die(outputs: dict[str, np.ndarray], feeds: Arrays) -> None:
        raise RuntimeUnavailableError("runtime planted broke off")

    with pytest.raises(RuntimeUnavailableError, match="broke off"):
        checked(build_network().build("head_sum"), Planted(die), save, target)


def test_golden_vectors_are_compared_on_another_runtime(save: Save, target: Target) -> None:
    path = save(build_network(bits=8, clip=63).build("head_sum"))
    x = images(4)
    codes, output = golden(lowered(path), x, target, verified=True)
    good = recheck(path, x, codes, output, target.session, runtime=Planted())
    assert (good.divergence, good.located, good.result.name, good.result.mismatches) == (
        None,
        None,
        "planted",
        0,
    )
    assert good.result.values == sum(array.size for array in codes.values()) + 2 * output.size

    def wrong(outputs: dict[str, np.ndarray], feeds: Arrays) -> None:
        if "join" in outputs and np.array_equal(feeds["input"], x[2:3]):
            outputs["join"][0, 1, 2, 3] ^= 1

    bad = recheck(path, x, codes, output, target.session, runtime=Planted(wrong))
    assert bad.result.mismatches == 1 and bad.divergence is not None and bad.located is not None
    assert (bad.divergence.site, bad.divergence.index, bad.divergence.executor) == (
        "join",
        (2, 1, 2, 3),
        "planted",
    )
    assert (bad.located.index, bad.located.cause) == ((2, 1, 2, 3), "fused-multiply-add")
    assert [one.code for one in bad.located.operands] == [
        int(codes[name][2, 1, 2, 3]) for name in ("branch", "stem")
    ]
    gone = recheck(path, x, codes, output, target.session, runtime=Planted(refuses="stem"))
    assert gone.located is not None and (gone.located.cause, gone.result.mismatches) == (
        "refused",
        gone.result.values - output.size,
    )


def test_the_message_of_a_runtime_that_refuses_only_the_file_as_it_ships_is_shown(
    save: Save, target: Target
) -> None:
    @dataclass(frozen=True)
    class Refuses:
        name: str = "planted"

        def run(
            self, jobs: Sequence[RuntimeJob], *, policy: SessionRules
        ) -> tuple[RuntimeInfo, tuple[RuntimeAnswer, ...]]:
            info, (codes, _) = Planted().run(jobs, policy=policy)
            return info, (codes, RuntimeAnswer(runs=(), refused="no such kernel"))

    path = save(build_network().build("head_sum"))
    x = images(2)
    codes, output = golden(lowered(path), x, target, verified=True)
    found = recheck(path, x, codes, output, target.session, runtime=Refuses())
    assert found.located is not None and (found.located.site, found.located.cause) == ("output", "refused")
    assert "no such kernel" in found.located.explanation and found.result.mismatches == output.size


def test_values_in_another_shape_are_told_so(save: Save, target: Target) -> None:
    def flatten(outputs: dict[str, np.ndarray], feeds: Arrays) -> None:
        if "stem" in outputs:
            outputs["stem"] = outputs["stem"].reshape(len(outputs["stem"]), -1)

    _, place = checked(build_network().build("head_sum"), Planted(flatten), save, target)
    assert place is not None and place.cause == "shape" and "in another shape" in place.explanation
