"""manifest.json: what a bundle says of itself. Scripts rely on these names.

Fields may be added; readers keep what they do not know. A change of meaning raises `schema_version`.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field

from mixport.release.calibration_entries import CalibrationEntry
from mixport.release.choice_entries import ReconstructionEntry, TrainingEntry, WidthsEntry
from mixport.release.manifest_part import Part
from mixport.release.validation_entries import DecisionEntry, ValidationEntry

SCHEMA_VERSION = 1

_SHA256 = r"^[0-9a-f]{64}$"


class PortEntry(Part):
    """One input or output: its name in the ONNX file, its sizes (null is the batch), and what it holds."""

    name: str
    shape: tuple[int | None, ...]
    role: str


class SignatureEntry(Part):
    """What the model takes and gives, and what that means."""

    task: str
    inputs: tuple[PortEntry, ...]
    outputs: tuple[PortEntry, ...]


class ModelEntry(Part):
    """The float model: name, where it came from, SHA-256 of its weights."""

    name: str
    source: str
    sha256: str


class TargetEntry(Part):
    """The target file."""

    name: str
    sha256: str = Field(pattern=_SHA256)
    title: str = ""


class WarningEntry(Part):
    """Something worth a look, though no gate asks for it: what it is about, what was seen, and what to type
    or change.
    """

    about: str
    message: str
    hint: str


class SiteEntry(Part):
    """One quantised tensor: a weight (with its layer) or an activation.

    `sqnr_db` is the SQNR of the model's output with this tensor alone quantised, on a few calibration images;
    it is measured where the output with all of them quantised is worth a warning.

    A weight's `activation_bits` are those of the tensor that its layer reads, so that wWaA can be checked row
    by row. Scale, zero point and range belong to activations; weights have one scale a channel, in the file.
    """

    name: str
    op: str
    kind: Literal["weight", "activation"]
    weight_bits: int | None
    activation_bits: int | None
    weight_storage: str | None
    reason: str
    role: str | None = None
    storage: str | None = None
    scale: float | None = None
    zero_point: int | None = None
    qmin: int | None = None
    qmax: int | None = None
    shape: tuple[int, ...] | None = None
    input_site: str | None = None
    behind_island: bool = False
    sqnr_db: float | None = None


class MetricsEntry(Part):
    """Accuracy in percent, agreement as a share, SQNR in dB, sizes in bytes; None where not measured, with
    the reason in `reasons` by name.

    `sqnr_db` is 10 log10(signal / noise): signal the variance of each output over the images, summed over
    outputs, noise the mean of the squared differences to the float model, summed too. What an output has on
    every image alike is no signal.
    """

    top1_float: float | None
    top1_quantized: float | None
    agreement: float | None
    sqnr_db: float | None
    size_bytes: int
    size_ratio: float
    float_bytes: int | None = None
    images: int | None = None
    reasons: dict[str, str] = Field(default_factory=dict)


class GateEntry(Part):
    """One gate and whether it is met."""

    gate: str
    passed: bool
    value: float | None
    explanation: str
    hint: str | None = None


class PreprocessingEntry(Part):
    """How pixels become the model's input."""

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_fraction: float
    interpolation: str


class GraphEntry(Part):
    """Versions of the ONNX file."""

    opset: int
    ir_version: int


class FormCostEntry(Part):
    """Median latency of one softmax or LayerNorm: in portable form, and as the runtime's own operator."""

    kind: str
    shape: tuple[int, ...]
    count: int
    portable_ms: float
    own_ms: float


class PortableCostEntry(Part):
    """Latency of the model, and its ratio to the model with the runtime's own softmax and LayerNorm; one
    thread, batch 1.
    """

    model_ms: float
    ratio: float
    forms: tuple[FormCostEntry, ...]


class LatencyEntry(Part):
    """Median latencies of the file and of the float model, and their ratio (below 1 the file is faster); one
    thread, batch 1.

    `slower` is True where the file is slower by more than noise. Without float_ms, `reason` says why.
    """

    model_ms: float
    float_ms: float | None
    ratio: float | None
    model_quartiles_ms: tuple[float, float]
    float_quartiles_ms: tuple[float, float] | None
    rounds: int
    slower: bool
    reason: str = ""


class Manifest(Part):
    """The whole of manifest.json. `files` maps every other file of the bundle to its SHA-256; `release` fills
    it. Bundles of older versions have no `signature`: they hold classifiers.

    `oldest_onnxruntime` is the oldest version that is known to give the same codes for a file of this kind,
    on x64; None in bundles of older versions. mixport.validate.conformance.oldest_runtime says from what.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    mixport_version: str
    model: ModelEntry
    scheme: str
    target: TargetEntry
    calibration: CalibrationEntry
    sites: tuple[SiteEntry, ...]
    metrics: MetricsEntry
    validation: ValidationEntry
    files: dict[str, str] = Field(default_factory=dict)
    environment: dict[str, str]
    reproduce: str
    edge_bits: int | None = None
    convention: str | None = None
    gates: tuple[GateEntry, ...] = ()
    warnings: tuple[WarningEntry, ...] = ()
    decisions: tuple[DecisionEntry, ...] = ()
    preprocessing: PreprocessingEntry | None = None
    class_names: tuple[str, ...] | None = None
    signature: SignatureEntry | None = None
    graph: GraphEntry | None = None
    oldest_onnxruntime: str | None = None
    golden_images: int | None = None
    timings_s: dict[str, float] = Field(default_factory=dict)
    latency: LatencyEntry | None = None
    portable_cost: PortableCostEntry | None = None
    widths: WidthsEntry | None = None
    reconstruction: ReconstructionEntry | None = None
    training: TrainingEntry | None = None

    def document(self) -> dict[str, Any]:
        """Plain JSON values, as in the file and on stdout with --json."""
        return self.model_dump(mode="json")

    def text(self) -> str:
        """The file's content."""
        return json.dumps(self.document(), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
