"""Frozen records that cross stages: the only meeting place of calibration, quantize, lower, proof and
validate.

Records hold plain data and paths. Heavy payloads (images, integers, graphs) are files inside a store entry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mixport.arithmetic.quant_params import QuantParams
from mixport.records.errors import StoreError
from mixport.records.scheme import Role, Scheme
from mixport.records.search import LossSearch, Reconstruction, WidthSearch


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How pixels become the model's input: resize, centre crop, /255, normalise.

    Attributes:
        size: (height, width) of the model's input, in pixels.
        mean: per RGB channel, in units of [0, 1].
        std: per RGB channel, in units of [0, 1].
        crop_fraction: crop side / resized shorter side; used only when an image does not have the input's
            size already.
        interpolation: bilinear, bicubic or nearest.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_fraction: float = 1.0
    interpolation: str = "bicubic"


@dataclass(frozen=True, kw_only=True)
class CalibrationSet:
    """Calibration images on disk.

    Attributes:
        images_path: .npy of uint8 [N, H, W, 3] RGB, at the model's input size; read memory-mapped.
        count: N.
        method: images, noise, mixup ...
        recipe_key: SHA-256 of everything that was asked.
        content_sha256: SHA-256 of what came out.
        generator: name of the generator, None for real images and noise.
        blackened: how many of the images are black, because the generator's safety checker objected to them.
    """

    images_path: Path
    count: int
    method: str
    recipe_key: str
    content_sha256: str
    generator: str | None = None
    blackened: int = 0

    def open_images(self) -> NDArray[np.uint8]:
        """The images, memory-mapped. Raises StoreError where they are gone or damaged: another process may
        prune the cache.
        """
        try:
            return np.load(self.images_path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            reason = "are gone" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
            raise StoreError(
                f"calibration images {self.images_path} {reason}", hint="run the same command again"
            ) from error


@dataclass(frozen=True, kw_only=True)
class ActivationSite:
    """One quantised activation tensor.

    Attributes:
        name: born in the float model (module path and operator), and the ONNX name of the codes.
        op: operator that produces the tensor, e.g. conv2d, add, input.
        role: why it has codes.
        bits: width.
        params: scale, zero point, saturation, storage.
        reason: why this width and these parameters.
    """

    name: str
    op: str
    role: Role
    bits: int
    params: QuantParams
    reason: str


@dataclass(frozen=True, kw_only=True)
class WeightSite:
    """One quantised weight tensor (with its bias).

    Attributes:
        name: module path of the layer.
        op: conv2d, linear ...
        bits: width of the codes.
        storage: ONNX type in the file.
        shape: of the weight, [out, in / groups, ...].
        input_site: activation site that the layer reads, None where it reads floats.
        reason: why this width.
    """

    name: str
    op: str
    bits: int
    storage: str
    shape: tuple[int, ...]
    input_site: str | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Something done, or declined, on one node, and why. Ends in the report."""

    where: str
    what: str
    why: str


@dataclass(frozen=True, kw_only=True)
class BuildWarning:
    """Something about a build that is worth a look, though no gate asks for it.

    Attributes:
        about: what it is about, in a word or two: output, weights, calibration images.
        message: what was seen, with figures.
        hint: what to type or change.
    """

    about: str
    message: str
    hint: str

    def text(self) -> str:
        """One line for people."""
        return f"warning: {self.about}: {self.message}; hint: {self.hint}"


FormKind = Literal["softmax", "attention", "layer_norm"]
"""A softmax; one in front of a matrix product, divided behind it; a normalisation."""


@dataclass(frozen=True, kw_only=True)
class CompositeForm:
    """A softmax or normalisation that is lowered to portable operations.

    Attributes:
        kind: which it is.
        shape: of its input for one image; the batch axis is 1, or what one image makes of it (windows).
    """

    kind: FormKind
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class QuantizedModel:
    """A model whose every integer is fixed.

    Attributes:
        program_path: torch.export archive of the fake-quantised model; mixport:: operators carry sites and
            integers.
        scheme: widths asked for.
        activations: in graph order.
        weights: in graph order.
        decisions: what was folded, absorbed, left in float, and why.
        input_shape: [N, C, H, W] with N the traced batch.
        dynamic_batch: True when the batch axis is symbolic.
        float_bytes: size of the float parameters and buffers, 4 bytes each, before folding; shared ones once.
        composites: softmaxes and normalisations in portable form, in graph order.
        reconstruction: None where every weight was rounded to nearest.
        width_search: how the weight bits of layers were chosen; None where the scheme names them.
        loss: which tensors cost the output most; None where the output is good on calibration images.
    """

    program_path: Path
    scheme: Scheme
    activations: tuple[ActivationSite, ...]
    weights: tuple[WeightSite, ...]
    decisions: tuple[Decision, ...]
    input_shape: tuple[int, int, int, int]
    dynamic_batch: bool
    float_bytes: int
    composites: tuple[CompositeForm, ...] = ()
    reconstruction: Reconstruction | None = None
    width_search: WidthSearch | None = None
    loss: LossSearch | None = None


@dataclass(frozen=True, kw_only=True)
class LoweredGraph:
    """The deployable file.

    Attributes:
        model_path: ONNX file, input `input`, output `output`, no custom operators.
        opset: ONNX opset of the file.
        ir_version: ONNX IR version of the file.
        sites: names of the code tensors inside the file, in graph order.
        decisions: rewrites applied and declined.
    """

    model_path: Path
    opset: int
    ir_version: int
    sites: tuple[str, ...]
    decisions: tuple[Decision, ...]


class ImageScores(Protocol):
    """The float model's opinion of images, as the filters of drawn images need it. Lower is better in every
    score.
    """

    def energy(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """How unfamiliar each image is.

        Args:
            images: uint8 [N, H, W, 3] at the model's input size.

        Returns:
            -logsumexp(logits), [N].

        Raises:
            BadInputError: the model gives NaN or infinity.
        """
        ...

    def statistics(
        self, images: NDArray[np.uint8], *, chosen: Sequence[int] | None = None
    ) -> tuple[NDArray[np.float64], str]:
        """How badly each image fits what the model learned about whole batches, or what its patches say.

        Args:
            images: uint8 [P, H, W, 3] at the model's input size; may be memory-mapped, and is read in pieces.
            chosen: positions of the N images to score, None for all; the score of one may depend on the
                others.

        Returns:
            scores [N], and the name of the statistic.

        Raises:
            BadInputError: the model gives NaN or infinity.
            BadOptionError: the model has nothing to compute a statistic from.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """First difference between two executors.

    Attributes:
        site: code tensor, or `output`.
        index: position inside it.
        expected: value by the interpreter.
        got: value by the other executor.
        executor: who differs, e.g. `onnxruntime` or `simulation`.
        inputs: which inputs showed it, e.g. `images` or `near-tie`.
    """

    site: str
    index: tuple[int, ...]
    expected: float
    got: float
    executor: str
    inputs: str


@dataclass(frozen=True, kw_only=True)
class RuntimeResult:
    """What one runtime gave: counts over every tensor compared."""

    name: str
    version: str
    cpu: str
    tensors: int
    values: int
    mismatches: int


@dataclass(frozen=True, kw_only=True)
class Operand:
    """One code tensor that the node of a divergence reads.

    Attributes:
        name: of the tensor.
        code: the code at the diverging position, None where the position reads many or cannot be told.
        count: how many codes the position reads: the receptive window of a convolution, a row of a product.
    """

    name: str
    code: int | None
    count: int


Cause = Literal[
    "refused",
    "shape",
    "pair-saturation",
    "fused-multiply-add",
    "unfused-float",
    "tie",
    "float-operators",
    "swapped-channel",
    "other-data",
    "other-arithmetic",
]
"""Why a runtime may have given another value; see `mixport.validate.localise.localise`."""


@dataclass(frozen=True, kw_only=True)
class Localisation:
    """Where a runtime departs from the interpreter first, and why it likely does.

    Attributes:
        site: first diverging tensor in graph order.
        index: position inside it, in the batch that was run; empty where none can be named.
        executor: who differs.
        inputs: which inputs showed it.
        expected: value by the interpreter.
        got: value by the runtime.
        node: the node whose result it is.
        op: its operator.
        operands: code tensors that it reads.
        accumulator: the exact sum at the position, bias included; None where the node has none.
        exact: the value before rounding, in codes; None where it cannot be told.
        cause: likely cause.
        explanation: one sentence on the cause.
        repair: what to change.
    """

    site: str
    index: tuple[int, ...]
    executor: str
    inputs: str
    expected: float
    got: float
    node: str
    op: str
    operands: tuple[Operand, ...]
    accumulator: int | None
    exact: float | None
    cause: Cause
    explanation: str
    repair: str

    def text(self) -> str:
        """One line for people."""
        codes = [
            f"{one.name}={one.code}" if one.code is not None else f"{one.count} codes of {one.name}"
            for one in self.operands
        ]
        read = f" reads {', '.join(codes)}" if codes else ""
        total = "" if self.accumulator is None else f", accumulator {self.accumulator}"
        return (
            f"{self.executor} differs first at {self.site}{list(self.index)} on {self.inputs}: "
            f"expected {self.expected:g}, got {self.got:g}; "
            f"node {self.node} ({self.op}){read}{total}; {self.cause}: {self.explanation}"
        )


@dataclass(frozen=True, kw_only=True)
class FusionAudit:
    """What the runtime's optimiser made of the graph.

    Attributes:
        integer_nodes: nodes of the optimised graph that run on integers, by operator type.
        float_nodes: nodes that run in float, by operator type.
        float_compute: quantisable nodes (Conv, Gemm, MatMul, ...) that stayed float, with the reason.
        fused_islands: integer operators that the optimiser put in the place of a float island; they are
            compared with the float operator.
    """

    integer_nodes: Mapping[str, int]
    float_nodes: Mapping[str, int]
    float_compute: tuple[Decision, ...]
    fused_islands: tuple[Decision, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ValidationReport:
    """The verdict and its evidence.

    Attributes:
        verdict: `exact` or `mismatch`.
        claim: one sentence with its scope.
        session_policy: optimization_level, threads, config.
        runtimes: one result a runtime, and one for the simulation.
        divergences: first divergence of each executor that differs.
        float_islands: names of float nodes outside the claim.
        site_checks: adversarial checks, {kind: {sites, values, mismatches}}.
        audit: fusion audit of the file.
        proofs: static bounds by name.
        localisations: where each runtime that differs does so first, and the likely cause.
        entry_sites: sites directly behind a float operator that is not bit-portable: their codes are outside
            the claim.
    """

    verdict: str
    claim: str
    session_policy: Mapping[str, object]
    runtimes: tuple[RuntimeResult, ...]
    divergences: tuple[Divergence, ...]
    float_islands: tuple[str, ...]
    site_checks: Mapping[str, Mapping[str, int]]
    audit: FusionAudit
    proofs: Mapping[str, object] = field(default_factory=dict[str, object])
    localisations: tuple[Localisation, ...] = ()
    entry_sites: tuple[str, ...] = ()
