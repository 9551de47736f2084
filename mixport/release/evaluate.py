"""How good a quantised model is: metrics against the float model, and gates on them."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from mixport.records.errors import BadInputError, BadOptionError
from mixport.records.output_quality import agreement, named_classes, sqnr_db

ONE_OUTPUT = "the model has one output value, which names no class"
CONSTANT_OUTPUT = (
    "the float model's outputs are the same on all {images} images, so that nothing could differ"
)

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
#: What a gate may name: meaning, and the option that makes the value available (None: always there).
GATE_METRICS: dict[str, tuple[str, str | None]] = {
    "top1_drop": ("top1_float - top1_quantized, percentage points", "--eval"),
    "top1_float": ("top-1 accuracy of the float model, percent", "--eval"),
    "top1_quantized": ("top-1 accuracy of the quantised model, percent", "--eval"),
    "agreement": ("share of images on which both models name the same class, 0 to 1", None),
    "sqnr_db": ("how far the outputs vary over the images, to quantisation noise, dB", None),
    "size_bytes": ("size of model.onnx", None),
    "size_ratio": ("size of model.onnx / size of the float parameters", None),
    "mismatches": ("codes that differ between any two executors", None),
}
_GATE = re.compile(r"\s*(\w+)\s*(<=|>=|==|<|>)\s*(\S+)\s*")


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """The contract's metrics.

    Attributes:
        top1_float: percent; None without labels.
        top1_quantized: percent; None without labels.
        agreement: share of images with the same top-1 class, 0 to 1; None where nothing was compared or could
            differ.
        sqnr_db: of the output, as `sqnr_db` defines it; None where nothing was compared or the outputs do not
            vary.
        size_bytes: of model.onnx.
        size_ratio: size_bytes / float_bytes.
        float_bytes: size of the float parameters, 4 bytes each.
        images: number of images behind agreement, sqnr_db and top-1.
        reasons: by the name of a metric, why it is None although both models ran.
    """

    top1_float: float | None
    top1_quantized: float | None
    agreement: float | None
    sqnr_db: float | None
    size_bytes: int
    size_ratio: float
    float_bytes: int
    images: int
    reasons: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def top1_drop(self) -> float | None:
        """top1_float - top1_quantized in percentage points, to 9 decimals: 92.0 - 91.0 is 1.0, whatever
        binary fractions say.
        """
        if self.top1_float is None or self.top1_quantized is None:
            return None
        return round(self.top1_float - self.top1_quantized, 9)


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A condition on one metric."""

    metric: str
    operator: str
    bound: float

    @property
    def text(self) -> str:
        """Canonical spelling, which `parse_gate` reads back to the same gate."""
        bound = int(self.bound) if self.bound.is_integer() else self.bound
        return f"{self.metric}{self.operator}{bound!r}"


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """Whether a gate is met.

    Attributes:
        gate: canonical spelling.
        passed: False also where the metric is not available.
        value: of the metric; None where it is not available.
        explanation: one sentence.
        hint: what to type next; None where the gate is met.
    """

    gate: str
    passed: bool
    value: float | None
    explanation: str
    hint: str | None


def top1(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Top-1 accuracy in percent of logits [N, classes] against class indices [N]; ties count for the lower
    index.

    Raises:
        BadInputError: shapes that do not fit, no image, NaN, or a label that is no class.
    """
    best = named_classes(logits)
    if labels.shape != best.shape:
        raise BadInputError(
            f"labels have shape {list(labels.shape)}, allowed [{len(best)}], one label an image"
        )
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise BadInputError(
            f"labels go from {labels.min()} to {labels.max()}, the model has {logits.shape[1]} classes",
            hint="check the --eval file",
        )
    return 100.0 * int((best == labels).sum()) / len(best)


def measure(
    *,
    float_logits: NDArray[np.floating] | None,
    quantized_logits: NDArray[np.floating] | None,
    labels: NDArray[np.integer] | None,
    size_bytes: int,
    float_bytes: int,
) -> Metrics:
    """All metrics of one build; None where there is nothing to measure with, or where a figure would mean
    nothing. Raises BadInputError.
    """
    same_class: float | None = None
    ratio_db: float | None = None
    reasons: dict[str, str] = {}
    classes_named = True
    if float_logits is not None and quantized_logits is not None:
        same_class, ratio_db = (
            agreement(float_logits, quantized_logits),
            sqnr_db(float_logits, quantized_logits),
        )
        classes_named = float_logits.shape[1] > 1
        if ratio_db is None:
            same_class, reasons["sqnr_db"] = None, CONSTANT_OUTPUT.format(images=len(float_logits))
            reasons["agreement"] = reasons["sqnr_db"]
        if not classes_named:
            same_class, reasons["agreement"] = None, ONE_OUTPUT
            reasons |= {name: ONE_OUTPUT for name in ("top1_float", "top1_quantized") if labels is not None}
    labels = labels if classes_named else None
    return Metrics(
        top1_float=top1(float_logits, labels) if float_logits is not None and labels is not None else None,
        top1_quantized=top1(quantized_logits, labels)
        if quantized_logits is not None and labels is not None
        else None,
        agreement=same_class,
        sqnr_db=ratio_db,
        size_bytes=size_bytes,
        size_ratio=size_bytes / float_bytes,
        float_bytes=float_bytes,
        images=len(quantized_logits) if quantized_logits is not None else 0,
        reasons=reasons,
    )


def gate_values(metrics: Metrics, *, mismatches: int | None) -> dict[str, float | None]:
    """Every metric that a gate may name; None where it was not measured."""
    return {
        "top1_drop": metrics.top1_drop,
        "top1_float": metrics.top1_float,
        "top1_quantized": metrics.top1_quantized,
        "agreement": metrics.agreement,
        "sqnr_db": metrics.sqnr_db,
        "size_bytes": metrics.size_bytes,
        "size_ratio": metrics.size_ratio,
        "mismatches": mismatches,
    }


def parse_gate(text: str) -> Gate:
    """Read `top1_drop<=1.0` and the like. Raises BadOptionError naming what is allowed."""
    match = _GATE.fullmatch(text)
    bound = _number(match[3]) if match else None
    if match is None or bound is None:
        raise BadOptionError(
            f"--gate is {text!r}, allowed METRIC OPERATOR NUMBER with an operator of {' '.join(_OPERATORS)}",
            hint="mixport build --gate 'top1_drop<=1.0' ...",
        )
    if match[1] not in GATE_METRICS:
        raise BadOptionError(
            f"--gate {text!r} names the unknown metric {match[1]}, known: {', '.join(GATE_METRICS)}",
            hint="mixport build --gate 'top1_drop<=1.0' ...",
        )
    return Gate(metric=match[1], operator=match[2], bound=bound)


def check_gates(
    gates: Iterable[Gate],
    values: Mapping[str, float | None],
    *,
    reasons: Mapping[str, str] = MappingProxyType({}),
) -> list[GateResult]:
    """One result a gate, in order. A gate on a value that is missing, None or NaN is not met; `reasons` says
    why it is, where known.
    """
    return [_check(gate, values.get(gate.metric), reason=_reason(gate.metric, reasons)) for gate in gates]


def _reason(metric: str, reasons: Mapping[str, str]) -> str | None:
    return reasons.get("top1_quantized" if metric == "top1_drop" else metric)


def _check(gate: Gate, value: float | None, *, reason: str | None) -> GateResult:
    if value is None or math.isnan(value):
        option = GATE_METRICS[gate.metric][1]
        if reason is not None:
            explanation, hint = (
                f"{gate.metric} was not measured: {reason}",
                f"leave out --gate '{gate.text}', or change what it is measured on",
            )
            return GateResult(gate=gate.text, passed=False, value=None, explanation=explanation, hint=hint)
        hint = (
            f"mixport build {option} DIR ..."
            if option
            else f"leave out --gate '{gate.text}', or let the build measure {gate.metric}"
        )
        return GateResult(
            gate=gate.text, passed=False, value=None, explanation=f"{gate.metric} was not measured", hint=hint
        )
    passed = _OPERATORS[gate.operator](value, gate.bound)
    explanation = f"{gate.metric} = {value:.6g} (limit {gate.operator} {gate.bound:.6g})"
    return GateResult(
        gate=gate.text,
        passed=passed,
        value=value,
        explanation=explanation,
        hint=None if passed else "see report.html",
    )


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
