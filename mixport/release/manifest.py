"""manifest.json: what a bundle says of itself. Scripts rely on these names.

Fields may be added; readers keep what they do not know. A change of meaning raises `schema_version`.
"""

from __future__ import annotations

import json
import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

SCHEMA_VERSION = 1

Verdict = Literal["exact", "mismatch"]
_SHA256 = r"^[0-9a-f]{64}$"


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False, protected_namespaces=())


class ModelEntry(_Part):
    """The float model: name, where it came from, SHA-256 of its weights."""

    name: str
    source: str
    sha256: str


class TargetEntry(_Part):
    """The target file."""

    name: str
    sha256: str = Field(pattern=_SHA256)
    title: str = ""


class GeneratorEntry(_Part):
    """What drew the calibration images, with every setting as it was used; None where it is not known.

    `blackened` images are those that the safety checker objected to.
    """

    source: str
    pipeline: str | None = None
    weights_sha256: str | None = None
    revision: str | None = None
    scheduler: str | None = None
    steps: int | None = None
    guidance: float | None = None
    negative_prompt: str | None = None
    size: tuple[int, int] | None = None
    dtype: str | None = None
    device: str | None = None
    safety_checker: bool | None = None
    blackened: int | None = None
    batch: int | None = None


class PromptsEntry(_Part):
    """How the prompts were made."""

    strategy: str
    classes: int
    classes_per_prompt: int
    template: str | None
    pairing: str
    label_text: str


class FiltersEntry(_Part):
    """Which drawn images were kept: the shares asked for, and how many images each filter dropped."""

    keep_energy: float
    keep_statistics: float
    drawn: int
    dropped_by_energy: int
    dropped_by_statistics: int
    statistic: str = ""


class CalibrationEntry(_Part):
    """The calibration images; the last three fields are those of drawn ones."""

    method: str
    recipe_key: str
    content_sha256: str
    images: int
    generator: str | None
    generator_details: GeneratorEntry | None = None
    prompts: PromptsEntry | None = None
    filters: FiltersEntry | None = None


class WarningEntry(_Part):
    """Something worth a look, though no gate asks for it: what it is about, what was seen, and what to type
    or change.
    """

    about: str
    message: str
    hint: str


class SiteEntry(_Part):
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


class MetricsEntry(_Part):
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


class SessionPolicy(_Part):
    """Session options that the claim names."""

    optimization_level: str
    threads: int
    config: dict[str, str] = Field(default_factory=dict)


class RuntimeResultEntry(_Part):
    """What one executor gave."""

    name: str
    version: str
    cpu: str
    tensors: int
    values: int
    mismatches: int


class DecisionEntry(_Part):
    """Something done, or declined, and why."""

    where: str
    what: str
    why: str


class DivergenceEntry(_Part):
    """First difference of one executor."""

    site: str
    index: tuple[int, ...]
    expected: float | None
    got: float | None
    executor: str
    inputs: str

    @field_validator("expected", "got", mode="before")
    @classmethod
    def _finite(cls, value: object) -> object:
        # JSON has no NaN or infinity, which an output that differs may well be.
        return None if isinstance(value, float) and not math.isfinite(value) else value


class OperandEntry(_Part):
    """A code tensor that a diverging node reads: its code at the position, or how many codes the position
    reads.
    """

    name: str
    code: int | None
    count: int


class LocalisationEntry(DivergenceEntry):
    """Where a runtime departs first: node, codes read, exact sum, likely cause and repair."""

    node: str
    op: str
    operands: tuple[OperandEntry, ...]
    accumulator: int | None
    exact: float | None
    cause: str
    explanation: str
    repair: str


class AuditEntry(_Part):
    """Nodes of the optimised graph that run on integers and in float, by operator type."""

    integer_nodes: dict[str, int] = Field(default_factory=dict)
    float_nodes: dict[str, int] = Field(default_factory=dict)
    float_compute: tuple[DecisionEntry, ...] = ()
    fused_islands: tuple[DecisionEntry, ...] = ()


class ValidationEntry(_Part):
    """The verdict and its evidence."""

    verdict: Verdict
    claim: str
    session_policy: SessionPolicy
    runtimes: tuple[RuntimeResultEntry, ...]
    proofs: dict[str, Any]
    float_islands: tuple[str, ...]
    divergences: tuple[DivergenceEntry, ...] = ()
    site_checks: dict[str, dict[str, int]] = Field(default_factory=dict)
    audit: AuditEntry = AuditEntry()
    localisations: tuple[LocalisationEntry, ...] = ()


class GateEntry(_Part):
    """One gate and whether it is met."""

    gate: str
    passed: bool
    value: float | None
    explanation: str
    hint: str | None = None


class PreprocessingEntry(_Part):
    """How pixels become the model's input."""

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_fraction: float
    interpolation: str


class GraphEntry(_Part):
    """Versions of the ONNX file."""

    opset: int
    ir_version: int


class FormCostEntry(_Part):
    """Median latency of one softmax or LayerNorm: in portable form, and as the runtime's own operator."""

    kind: str
    shape: tuple[int, ...]
    count: int
    portable_ms: float
    own_ms: float


class PortableCostEntry(_Part):
    """Latency of the model, and its ratio to the model with the runtime's own softmax and LayerNorm; one
    thread, batch 1.
    """

    model_ms: float
    ratio: float
    forms: tuple[FormCostEntry, ...]


class LatencyEntry(_Part):
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


class WidthOptionEntry(_Part):
    """One width a layer could have had: loss alone (KL divergence in nats), bytes of its weights in the
    file.
    """

    bits: int
    loss: float
    file_bytes: int


class LayerChoiceEntry(_Part):
    """Bits chosen for one layer, and from what."""

    name: str
    bits: int
    options: tuple[WidthOptionEntry, ...]


class WidthsEntry(_Part):
    """How weight bits were chosen under a size budget; the fields are those of
    `mixport.records.search.WidthSearch`.
    """

    budget_bytes: int
    smallest_bytes: int
    bound_bytes: int
    images: int
    exponent: float | None
    predicted: float
    loss: float
    uniform: dict[int, float]
    fits: tuple[int, ...]
    layers: tuple[LayerChoiceEntry, ...]


class UnitEntry(_Part):
    """One reconstructed unit: layers and activation sites that were learned; error of its output relative to
    its own square.

    The errors are None where they are no finite number. Without layers and sites the unit stayed as it was:
    rounded to nearest, or as the recipe's stage before left it. `batch` is the number of images a step,
    `dropped` the share of the values in the unit's input that were float ones while it was learned; None
    where an older mixport did not note them.
    """

    name: str
    layers: tuple[str, ...]
    sites: tuple[str, ...]
    error_before: float | None
    error_after: float | None
    batch: int | None = None
    dropped: float | None = None


class MlpEntry(_Part):
    """One MLP whose GELU was to become ReLU: its layers, none where it keeps GELU; error of its output in
    float relative to its own square.

    `error_before` is with ReLU simply put in, `error_after` with what was learned; None where it is no finite
    number.
    """

    name: str
    layers: tuple[str, ...]
    error_before: float | None
    error_after: float | None


class ReconstructionEntry(_Part):
    """How the integers were learned: recipe, steps a unit, calibration images, seed, device (cpu or cuda),
    CPU threads, units in order.

    `mlps` were learned in float before, in `mlp_iters` steps each.
    """

    preset: str
    iters: int
    images: int
    seed: int
    device: str
    threads: int
    units: tuple[UnitEntry, ...]
    mlps: tuple[MlpEntry, ...] = ()
    mlp_iters: int = 0


class Manifest(_Part):
    """The whole of manifest.json. `files` maps every other file of the bundle to its SHA-256; `release` fills
    it.
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
    graph: GraphEntry | None = None
    golden_images: int | None = None
    timings_s: dict[str, float] = Field(default_factory=dict)
    latency: LatencyEntry | None = None
    portable_cost: PortableCostEntry | None = None
    widths: WidthsEntry | None = None
    reconstruction: ReconstructionEntry | None = None

    def document(self) -> dict[str, Any]:
        """Plain JSON values, as in the file and on stdout with --json."""
        return self.model_dump(mode="json")

    def text(self) -> str:
        """The file's content."""
        return json.dumps(self.document(), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
