"""What a build says of its own result beside verdict and gates: outputs that are bad, and figures that say
little.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mixport.pipeline.latency import BuildLatency
from mixport.records.choices.search import TensorLoss
from mixport.records.decision import BuildWarning
from mixport.records.output_quality import (
    WEAK_AGREEMENT,
    WEAK_SQNR_DB,
    constant_outputs,
    is_weak,
    named_classes,
)
from mixport.records.quantized_model import QuantizedModel
from mixport.records.validation_report import RuntimeResult
from mixport.release.evaluate import Metrics
from mixport.validate.conformance.measured import unmeasured

_NAMED = 3
"""Tensors named as those that cost most."""
_CLOSE_DB = 6.0
"""A tensor that costs the output a quarter of what the worst one does, or less, is not named beside it."""
_LISTED = 8
_ONE_RANGE = (
    "channels or branches of very different range share 8-bit codes: bring them to one range in the model, "
    "dividing in front of the tensor and multiplying behind it"
)


def weak_output(
    metrics: Metrics, quantized: QuantizedModel, *, calib: str, labelled: bool
) -> Iterator[BuildWarning]:
    """A warning where the outputs are too far from the float model's: how far, which tensors cost most, and
    which options help.

    Args:
        metrics: of the build.
        quantized: has the search for the loss, where the calibration images show it.
        calib: as typed.
        labelled: the metrics are of labelled images, and not of the calibration's.
    """
    if not is_weak(sqnr=metrics.sqnr_db, same_class=metrics.agreement):
        return
    far = [
        f"{metrics.sqnr_db:.1f} dB SQNR (below {WEAK_SQNR_DB:g})"
        if metrics.sqnr_db is not None and metrics.sqnr_db < WEAK_SQNR_DB
        else "",
        f"agreement {metrics.agreement:.2f} (below {WEAK_AGREEMENT:g})"
        if metrics.agreement is not None and metrics.agreement < WEAK_AGREEMENT
        else "",
    ]
    measured = f"far from the float model on {metrics.images} images: {', '.join(filter(None, far))}"
    if quantized.loss is None:
        yield BuildWarning(
            about="output",
            message=f"{measured}; not so on the calibration images, which must be unlike these",
            hint=f"--calib images:DIR with images like those of --eval{_own(calib)}"
            if labelled
            else _images(calib),
        )
        return
    worst = _worst(quantized.loss.tensors)
    named = ", ".join(f"{_spelt(one, quantized)} {one.sqnr_db:.1f} dB" for one in worst)
    yield BuildWarning(
        about="output",
        message=f"{measured}; what costs most, quantised alone: {named}",
        hint="; ".join(_remedies(worst, quantized, calib=calib)),
    )


def telling_outputs(
    reference: NDArray[np.floating], *, class_names: Sequence[str] | None
) -> Iterator[BuildWarning]:
    """Warnings where the float model's outputs [N, classes] make figures empty: constant ones, or one class
    on every image.
    """
    images, outputs = reference.shape
    if images < 2:
        return
    constant = np.flatnonzero(constant_outputs(reference))
    if len(constant) == outputs:
        yield BuildWarning(
            about="output",
            message=(
                f"the float model's output is the same on all {images} images: neither SQNR nor "
                "agreement can be measured"
            ),
            hint="check --weights and the images: --calib images:DIR with different ones",
        )
        return
    if len(constant):
        names = dict(enumerate(class_names or ()))
        named = ", ".join(
            f"{index} ({names[index]})" if index in names else f"{index}"
            for index in map(int, constant[:_LISTED])
        )
        more = f" and {len(constant) - _LISTED} more" if len(constant) > _LISTED else ""
        yield BuildWarning(
            about="output",
            message=(
                f"{len(constant)} of {outputs} outputs are constant in the float model: {named}{more}; "
                "SQNR is of the others"
            ),
            hint="check the weights of the last layer",
        )
    if outputs > 1 and len(np.unique(named_classes(reference))) == 1:
        yield BuildWarning(
            about="output",
            message=f"the float model names one class on all {images} images, so that agreement says little",
            hint="--eval with images of several classes",
        )


def slower_than_float(latency: BuildLatency) -> Iterator[BuildWarning]:
    """A warning where the file is slower than the float model, by more than noise."""
    if latency.slower and latency.ratio is not None:
        yield BuildWarning(
            about="latency",
            message=f"the file is slower than the float model: {latency.model_ms:.2f} ms, "
            f"{latency.ratio:.2f} times "
            f"{latency.float_ms:.2f} ms (medians of {latency.rounds} interleaved rounds here, one "
            "thread, batch 1)",
            hint="mixport bench BUNDLE --profile shows where the time goes",
        )


def zero_weights(layers: Sequence[str]) -> Iterator[BuildWarning]:
    """A warning that names the layers whose weights are all zero."""
    if layers:
        more = f" and {len(layers) - _LISTED} more" if len(layers) > _LISTED else ""
        yield BuildWarning(
            about="weights",
            message=(
                f"all weights are 0 in {', '.join(layers[:_LISTED])}{more}: what goes into these layers "
                "has no effect"
            ),
            hint="check --weights",
        )


def unmeasured_versions(runtimes: Sequence[RuntimeResult], *, portable: bool) -> Iterator[BuildWarning]:
    """A warning for each version that ran a portable file and has no result of the conformance kit."""
    ran = [(library, version) for library, _, version in (one.version.partition(" ") for one in runtimes)]
    for words in unmeasured(ran) if portable else ():
        yield BuildWarning(
            about="portable forms",
            message=(
                f"no conformance result of {words}: that the forms of this file are exact there is shown "
                "by its own comparison only"
            ),
            hint="mixport conformance with the same --runtime",
        )


def _worst(tensors: Sequence[TensorLoss]) -> list[TensorLoss]:
    return [one for one in tensors[:_NAMED] if one.sqnr_db < tensors[0].sqnr_db + _CLOSE_DB]


def _bits(quantized: QuantizedModel) -> Mapping[tuple[str, str], int]:
    sites = {("activation", site.name): site.bits for site in quantized.activations}
    return sites | {("weight", site.name): site.bits for site in quantized.weights}


def _spelt(one: TensorLoss, quantized: QuantizedModel) -> str:
    bits = _bits(quantized)[one.kind, one.name]
    return f"{one.name} ({bits}-bit {'weights' if one.kind == 'weight' else 'activations'})"


def _remedies(worst: Sequence[TensorLoss], quantized: QuantizedModel, *, calib: str) -> Iterator[str]:
    """Options that help against the tensors that cost most, the likeliest first."""
    scheme, bits = quantized.scheme, _bits(quantized)
    narrow = {one.kind for one in worst if bits[one.kind, one.name] < 8}
    weights = 8 if "weight" in narrow else scheme.weight_bits
    activations = 8 if "activation" in narrow else scheme.activation_bits
    if narrow and (weights, activations) != (scheme.weight_bits, scheme.activation_bits):
        yield f"--scheme w{weights}a{activations}"
    if (
        narrow
        and any(bits[one.kind, one.name] < scheme.edge_bits or scheme.edge_bits < 8 for one in worst)
        and scheme.edge_bits < 8
    ):
        yield "--edge-bits 8"
    if narrow:
        yield (
            "--iters 500"
            if quantized.reconstruction is None
            else f"--iters {4 * quantized.reconstruction.iters}"
        )
    if len(narrow) < len({one.kind for one in worst}) or not narrow:
        yield _ONE_RANGE
    yield _images(calib)


def _images(calib: str) -> str:
    return f"other or more images (--images N){_own(calib)}"


def _own(calib: str) -> str:
    return "" if calib.startswith("images:") else ", --calib images:DIR with real ones"
