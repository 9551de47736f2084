from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from mixport.pipeline.warnings import telling_outputs, unmeasured_versions, weak_output, zero_weights
from mixport.records.choices.scheme import Scheme
from mixport.records.quantized_model import QuantizedModel
from mixport.records.validation_report import RuntimeResult
from mixport.release.evaluate import Metrics, measure


def metrics(*, agreement: float | None, sqnr_db: float | None) -> Metrics:
    empty = measure(float_logits=None, quantized_logits=None, labels=None, size_bytes=1, float_bytes=4)
    return dataclasses.replace(empty, agreement=agreement, sqnr_db=sqnr_db, images=100)


def test_a_good_output_draws_no_warning(records: Any) -> None:
    assert (
        list(
            weak_output(
                metrics(agreement=0.9, sqnr_db=15.0), records.quantized, calib="mixup", labelled=False
            )
        )
        == []
    )
    assert (
        list(
            weak_output(
                metrics(agreement=None, sqnr_db=None), records.quantized, calib="mixup", labelled=False
            )
        )
        == []
    )


def test_a_bad_output_names_the_tensor_that_costs_most_and_the_options_that_help(records: Any) -> None:
    (found,) = weak_output(
        metrics(agreement=0.36, sqnr_db=5.6), records.quantized, calib="noise", labelled=False
    )
    assert "5.6 dB SQNR (below 15), agreement 0.36 (below 0.9)" in found.message
    assert found.message.endswith("add (8-bit activations) 8.2 dB, fc (2-bit weights) 12.5 dB")
    assert found.hint.startswith("--scheme w8a4; --iters 8000; channels or branches of very different range")
    assert "--calib images:DIR" in found.hint
    assert found.text().startswith("warning: output: far from the float model on 100 images")


def test_with_eight_bits_no_scheme_is_offered(records: Any) -> None:
    quantized: QuantizedModel = records.quantized
    loss = quantized.loss
    assert loss is not None
    activations = dataclasses.replace(loss, tensors=loss.tensors[:1])
    wide = dataclasses.replace(quantized, loss=activations, scheme=Scheme(weight_bits=8, activation_bits=8))
    (found,) = weak_output(metrics(agreement=0.5, sqnr_db=20.0), wide, calib="images:photos", labelled=False)
    assert "--scheme" not in found.hint
    assert "--calib" not in found.hint
    assert "dB SQNR" not in found.message, "20 dB is no fault"


def test_a_loss_that_calibration_images_do_not_show_is_laid_to_them(records: Any) -> None:
    quiet = dataclasses.replace(records.quantized, loss=None)
    (found,) = weak_output(metrics(agreement=0.7, sqnr_db=12.0), quiet, calib="noise", labelled=True)
    assert "not so on the calibration images" in found.message
    assert "like those of --eval" in found.hint


def test_constant_outputs_are_named() -> None:
    outputs = np.array([[0.0, 1.0, 1e5], [3.0, 2.0, 1e5]], np.float32)
    (found, _) = telling_outputs(outputs, class_names=["cat", "dog", "ship"])
    assert found.message.startswith("1 of 3 outputs are constant in the float model: 2 (ship)")
    (same,) = telling_outputs(np.zeros((4, 3), np.float32), class_names=None)
    assert same.message.startswith("the float model's output is the same on all 4 images")


def test_one_class_on_every_image_makes_agreement_empty() -> None:
    (found,) = telling_outputs(np.array([[5.0, 1.0], [4.0, 2.0]], np.float32), class_names=None)
    assert "names one class on all 2 images" in found.message
    assert list(telling_outputs(np.array([[5.0, 1.0], [1.0, 2.0]], np.float32), class_names=None)) == []
    assert list(telling_outputs(np.array([[5.0], [4.0]], np.float32), class_names=None)) == [], (
        "one output names no class"
    )


def test_layers_without_weights_are_named() -> None:
    assert list(zero_weights(())) == []
    (found,) = zero_weights(("conv1", "fc"))
    assert found.message.startswith("all weights are 0 in conv1, fc")


def test_a_version_without_a_conformance_result_is_named_for_a_portable_file_and_no_other() -> None:
    ran = [
        RuntimeResult(name=name, version=version, cpu="", tensors=1, values=1, mismatches=0)
        for name, version in (
            ("native", "onnxruntime 99.1.0"),
            ("arm64", "onnxruntime 1.31.1"),
            ("simulation", "torch 2.9.0"),
        )
    ]
    (found,) = unmeasured_versions(ran, portable=True)
    assert found.message.startswith("no conformance result of onnxruntime 99.1.0 (measured: 1.31.1, ")
    assert (
        list(unmeasured_versions(ran, portable=False))
        == list(unmeasured_versions(ran[1:], portable=True))
        == []
    )
