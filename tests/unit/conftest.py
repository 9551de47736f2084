from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from mixport.arithmetic.quant_params import QuantParams
from mixport.pipeline.manifest_entries import build_manifest
from mixport.records.calibration_set import CalibrationSet, Preprocessing
from mixport.records.choices.scheme import Scheme
from mixport.records.choices.search import LossSearch, MlpRecord, Reconstruction, TensorLoss, UnitRecord
from mixport.records.decision import BuildWarning, Decision
from mixport.records.quantized_model import ActivationSite, LoweredGraph, QuantizedModel, WeightSite
from mixport.records.signature import classifier
from mixport.records.targets import load_target
from mixport.records.validation_report import Divergence, FusionAudit, RuntimeResult, ValidationReport
from mixport.release.evaluate import Metrics, check_gates, gate_values, parse_gate
from mixport.release.manifest import Manifest, ModelEntry


@dataclass(frozen=True, kw_only=True)
class Records:
    """What the stages of a small build hand on; `hostile` is part of every name, so that escaping shows."""

    quantized: QuantizedModel
    lowered: LoweredGraph
    calibration: CalibrationSet
    validation: ValidationReport
    metrics: Metrics

    def manifest(self) -> Manifest:
        gates = [parse_gate(text) for text in ("mismatches==0", "top1_drop<=1.0", "size_ratio<=0.1")]
        return build_manifest(
            model=ModelEntry(name="small & <b>bold</b>", source="tests:small", sha256="ab" * 32),
            target=load_target("ort-cpu"),
            calibration=self.calibration,
            quantized=self.quantized,
            lowered=self.lowered,
            validation=self.validation,
            metrics=self.metrics,
            gates=check_gates(gates, gate_values(self.metrics, mismatches=2)),
            preprocessing=Preprocessing(size=(8, 8), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
            class_names=["cat", "<script>alert(1)</script>"],
            environment={"python": "3.11", "cpu": "some cpu"},
            warnings=[BuildWarning(about="output", message="far & <away>", hint="--scheme w8a8")],
            reproduce="mixport build tests:small --gate 'size_ratio<=0.1'",
            timings_s={"quantize": 1.23456, "lower": 0.5},
        )


@pytest.fixture
def records(tmp_path: Path) -> Records:
    """Records of a model with two layers, one float island and one runtime that differs."""
    model_path = tmp_path / "lowered.onnx"
    model_path.write_bytes(b"onnx bytes")
    params = QuantParams(scale=0.05, zero_point=0, qmin=0, qmax=15, storage="uint8")
    decision = Decision(where="conv.bn", what="folded", why="it is <affine> per channel")
    return Records(
        quantized=QuantizedModel(
            program_path=tmp_path / "program.pt2",
            signature=classifier((1, 3, 32, 32), classes=10),
            scheme=Scheme(weight_bits=2, activation_bits=4),
            activations=(
                ActivationSite(
                    name="input", op="input", role="input", bits=8, params=params, reason="model input"
                ),
                ActivationSite(
                    name="conv.relu", op="relu", role="compute", bits=4, params=params, reason="read by fc"
                ),
                ActivationSite(
                    name="add", op="add", role="carrier", bits=8, params=params, reason="branches meet"
                ),
            ),
            weights=(
                WeightSite(
                    name="conv",
                    op="conv2d",
                    bits=8,
                    storage="int8",
                    shape=(4, 3, 3, 3),
                    input_site="input",
                    reason="first layer",
                ),
                WeightSite(
                    name="fc",
                    op="linear",
                    bits=2,
                    storage="int2",
                    shape=(10, 4),
                    input_site="conv.relu",
                    reason="scheme",
                ),
                WeightSite(
                    name="head",
                    op="linear",
                    bits=8,
                    storage="int8",
                    shape=(10, 4),
                    input_site=None,
                    reason="reads floats",
                ),
            ),
            decisions=(decision,),
            input_shape=(1, 3, 8, 8),
            dynamic_batch=True,
            float_bytes=1000,
            loss=LossSearch(
                images=32,
                sqnr_db=8.0,
                agreement=0.75,
                tensors=(
                    TensorLoss(kind="activation", name="add", sqnr_db=8.25),
                    TensorLoss(kind="weight", name="fc", sqnr_db=12.5),
                    TensorLoss(kind="activation", name="conv.relu", sqnr_db=31.5),
                ),
            ),
            reconstruction=Reconstruction(
                preset="mixport",
                iters=2000,
                images=32,
                seed=3,
                device="cpu",
                threads=2,
                units=(
                    UnitRecord(
                        name="body <b>",
                        layers=("fc",),
                        sites=("conv.relu",),
                        error_before=0.5,
                        error_after=0.125,
                        batch=32,
                        dropped=0.25,
                    ),
                    UnitRecord(
                        name="late",
                        layers=(),
                        sites=(),
                        error_before=None,
                        error_after=None,
                        batch=4,
                        dropped=0.25,
                    ),
                ),
                mlps=(
                    MlpRecord(
                        name="mlp <b>", layers=("norm", "fc1", "fc2"), error_before=0.25, error_after=0.0625
                    ),
                    MlpRecord(name="wild", layers=(), error_before=0.75, error_after=None),
                ),
                mlp_iters=8000,
            ),
        ),
        lowered=LoweredGraph(
            model_path=model_path,
            signature=classifier((1, 3, 32, 32), classes=10),
            opset=25,
            ir_version=11,
            sites=("input", "conv.relu", "add"),
            decisions=(Decision(where="head", what="left in float", why="its input has no codes"),),
        ),
        calibration=CalibrationSet(
            images_path=tmp_path / "images.npy",
            count=32,
            method="noise",
            recipe_key="12" * 32,
            content_sha256="34" * 32,
        ),
        validation=ValidationReport(
            verdict="mismatch",
            claim="Codes differ in <i>one</i> runtime.",
            session_policy={"optimization_level": "all", "threads": 1, "config": {"session.x": "1"}},
            runtimes=(
                RuntimeResult(
                    name="native", version="1.31.1", cpu="x64", tensors=3, values=3000, mismatches=0
                ),
                RuntimeResult(
                    name="wasm", version="1.30.0", cpu="wasm", tensors=3, values=3000, mismatches=2
                ),
            ),
            divergences=(
                Divergence(
                    site="add", index=(0, 1), expected=3.0, got=4.0, executor="wasm", inputs="near-tie"
                ),
                Divergence(
                    site="output",
                    index=(0,),
                    expected=1.0,
                    got=float("nan"),
                    executor="wasm",
                    inputs="images",
                ),
            ),
            float_islands=("norm <1>",),
            entry_sites=("add",),
            site_checks={"near-tie": {"sites": 3, "values": 96, "mismatches": 1}},
            audit=FusionAudit(
                integer_nodes={"QLinearConv": 1}, float_nodes={"Softmax": 1}, float_compute=(decision,)
            ),
            proofs={
                "accumulator": {"largest": 1000, "holds": True, "layers": ["conv", "fc"]},
                "portable_nodes": 7,
                "open": [],
            },
        ),
        metrics=Metrics(
            top1_float=91.5,
            top1_quantized=91.0,
            agreement=0.98,
            sqnr_db=20.0,
            size_bytes=200,
            size_ratio=0.2,
            float_bytes=1000,
            images=100,
        ),
    )
