"""Unit checks: they pass on the runtime's fused kernels, and they do find a runtime that computes
otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from mixport.records.targets import SessionRules, Target
from mixport.validate.crafted.check_units import check_sites
from mixport.validate.crafted.images import adversarial_images
from mixport.validate.interpreter.interpreter import Interpreter
from tests.unit.validate.qdq_graphs import QdqBuilder, build_network, build_transformer

f32 = np.float32
FUSED = SessionRules(optimization_level="all", threads=1)
UNFUSED = SessionRules(optimization_level="disabled", threads=1)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_network_passes(bits: int, target: Target) -> None:
    found = check_sites(
        build_network(bits=bits).build("head_sum"), policy=target.session, input_shape=(1, 3, 8, 8)
    )
    assert found.mismatches == 0 and found.first is None and found.skipped == ()
    assert {kind: count["sites"] for kind, count in found.counts.items()} == {
        "add: all-pairs": 1,
        "average: near-tie": 1,
        "average: random": 1,
        "average: saturation": 1,
        "conv: near-tie": 3,
        "conv: random": 3,
        "conv: saturation": 3,
        "gemm: random": 1,
        "gemm: saturation": 1,
        "requantise: all-codes": 2,
    }
    assert found.counts["add: all-pairs"]["values"] == 3 * 65536


def test_a_transformer_passes_around_its_islands(target: Target) -> None:
    found = check_sites(
        build_transformer().build("logits_sum"), policy=target.session, input_shape=(1, 3, 8, 8)
    )
    assert found.mismatches == 0
    assert found.counts["matmul: near-tie"]["sites"] == 1
    assert found.counts["table: all-codes"] == {"sites": 1, "values": 256, "mismatches": 0}
    assert found.counts["requantise: all-codes"]["values"] == 65536


def test_multiply_passes(target: Target) -> None:
    b = QdqBuilder()
    product = b.node("Mul", [b.qdq("input", "x", 0.5, 128), b.qdq(b.node("Neg", ["input"]), "x2", 0.5, 3)])
    found = check_sites(
        b.build(b.qdq(product, "y", 25.0, 7)), policy=target.session, input_shape=(1, 3, 8, 8)
    )
    assert found.counts == {"multiply: all-pairs": {"sites": 1, "values": 3 * 65536, "mismatches": 0}}


def test_near_ties_find_float_arithmetic_more_often_than_random_codes() -> None:
    b = QdqBuilder(shape=("N", 16, 8, 8))
    x_scale, w_scale = b.quantise("input", "x", 0.1, 0, clip=(0, 15)), np.full(32, 0.3, f32)
    w = b.weight(b.rng.integers(-7, 8, (32, 16, 3, 3)), w_scale)
    product = f32(b.quantisation[x_scale][0] * f32(0.3))
    conv = b.node("Conv", [b.dequantise("x"), w], pads=[1, 1, 1, 1])
    # The multiplier is exactly 1/1024: sums of 512 mod 1024 are ties for integers, and near ties for a float
    # convolution.
    model = b.build(b.qdq(conv, "y", float(product * f32(1024)), 128))
    counts = check_sites(model, policy=UNFUSED, input_shape=(1, 16, 8, 8)).counts
    rate = {kind: count["mismatches"] / count["values"] for kind, count in counts.items()}
    assert rate["conv: near-tie"] > 2 * rate["conv: random"]
    assert counts["conv: near-tie"]["mismatches"] > 20
    assert check_sites(model, policy=FUSED, input_shape=(1, 16, 8, 8)).mismatches == 0


def test_the_first_divergence_names_unit_kind_and_place() -> None:
    # Unfused, the product of two dequantised tensors rounds otherwise, and an odd zero point moves the ties.
    b = QdqBuilder()
    product = b.node("Mul", [b.qdq("input", "x", 0.3, 128), b.qdq(b.node("Neg", ["input"]), "x2", 0.7, 3)])
    found = check_sites(b.build(b.qdq(product, "y", 4.2, 7)), policy=UNFUSED, input_shape=(1, 3, 8, 8))
    assert found.first is not None and found.mismatches > 0
    assert (found.first.site, found.first.inputs, found.first.executor) == ("y", "all-pairs", "onnxruntime")
    assert len(found.first.index) == 2 and abs(found.first.expected - found.first.got) == 1


def test_units_with_movement_inside_are_listed_not_dropped(target: Target) -> None:
    b = QdqBuilder()
    x = b.qdq("input", "x", 0.03, 128)
    moved = b.node("Transpose", [x], perm=[0, 1, 3, 2], name="turn")
    found = check_sites(
        b.build(b.qdq(b.node("GlobalAveragePool", [moved]), "y", 0.01, 100)),
        policy=target.session,
        input_shape=(1, 3, 8, 8),
    )
    (decision,) = found.skipped
    assert decision.where == "y" and "turn" in decision.why


def test_the_same_seed_gives_the_same_inputs(target: Target) -> None:
    model = build_network().build("head_sum")
    first, second = (
        check_sites(model, policy=target.session, input_shape=(1, 3, 8, 8), seed=4) for _ in range(2)
    )
    assert first == second


def test_progress_hears_of_every_unit(target: Target) -> None:
    class Heard:
        def __init__(self) -> None:
            self.total, self.done = 0, 0

        @contextmanager
        def track(
            self, description: str, *, total: int, unit: str = "images"
        ) -> Iterator[Callable[[int], None]]:
            self.total = total

            def advance(count: int) -> None:
                self.done += count

            yield advance

    heard = Heard()
    check_sites(
        build_network().build("head_sum"), policy=target.session, input_shape=(1, 3, 8, 8), progress=heard
    )
    assert heard.total == heard.done == 8


def test_adversarial_images_reach_every_code_and_its_ties() -> None:
    plan = Interpreter(build_network(shape=("N", 3, 16, 16)).build("head_sum")).plan
    x = adversarial_images(plan, shape=(3, 16, 16), multiple=4)
    assert x.dtype == np.float32 and len(x) % 4 == 0 and np.isfinite(x).all()
    scale = np.float64(f32(0.03))
    levels = np.unique(x[6]) / scale
    assert len(levels) == 256 and np.abs(levels % 1 - 0.5).max() < 1e-4
    assert x.max() > 1e29 and x.min() < -1e29
    codes = Interpreter(build_network(shape=("N", 3, 16, 16)).build("head_sum")).run(x).codes["input_codes"]
    assert len(np.unique(codes)) == 256
