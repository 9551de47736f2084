"""ResNet-20 at low widths: every convolution's requantisation proved over every sum, each computed, in
seconds.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixport.lower import lower
from mixport.model.float_model import load_model
from mixport.quantize.quantizer import quantize
from mixport.records.calibration_set import CalibrationSet
from mixport.records.choices.scheme import Scheme
from mixport.records.targets import load_target
from mixport.validate.facts import facts_of
from mixport.validate.interpreter.interpreter import Interpreter
from mixport.validate.proof.prove import prove

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(
    "scheme", ["w2a4", *(pytest.param(scheme, marks=pytest.mark.sweep) for scheme in ("w4a4", "w4a8"))]
)
def test_every_low_bit_convolution_is_proved_by_enumeration(
    tmp_path: Path, scheme: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = load_target("ort-cpu")
    np.save(
        tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    )
    calibration = CalibrationSet(
        images_path=tmp_path / "images.npy", count=8, method="noise", recipe_key="", content_sha256=""
    )
    quantized = quantize(
        load_model("builtin:cifar10-resnet20"),
        calibration,
        target,
        scheme=Scheme.parse(scheme),
        workdir=tmp_path,
    )
    lowered = lower(quantized, target, workdir=tmp_path)
    facts = facts_of(
        Interpreter(lowered.model_path), input_shape=(1, 3, 32, 32), pair_limit=target.accumulator.pair_limit
    )
    start = time.perf_counter()
    proofs: Any = prove(facts, enumerate_up_to=1 << 25)
    seconds = time.perf_counter() - start
    with capsys.disabled():
        print(f" {scheme}: {proofs['requantisation']['sums_enumerated']:,} sums in {seconds:.1f} s ", end="")
    low_bit = {site.name for site in quantized.weights if site.bits < 8}
    records = [site for site in proofs["sites"] if site["node"].removesuffix("/Conv") in low_bit]
    assert len(records) == len(low_bit) == 18
    assert all(
        record["requantisation"]["method"] == "enumerated" and record["requantisation"]["wrong_sums"] == 0
        for record in records
    )
    assert all(record["pair_safe"] and record["exact_in_float32"] for record in proofs["sites"])
    assert proofs["violations"] == []
