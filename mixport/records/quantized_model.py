"""A model whose every integer is fixed, and the file made of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mixport.arithmetic.quant_params import QuantParams
from mixport.records.choices.scheme import Role, Scheme
from mixport.records.choices.search import LossSearch, Reconstruction, WidthSearch
from mixport.records.decision import Decision
from mixport.records.signature import Signature

FormKind = Literal["softmax", "attention", "layer_norm"]
"""A softmax; one in front of a matrix product, divided behind it; a normalisation."""


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
        signature: what it takes and gives.
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
    signature: Signature
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
        model_path: ONNX file, no custom operators; its ports have the names of the signature.
        signature: what it takes and gives.
        opset: ONNX opset of the file.
        ir_version: ONNX IR version of the file.
        sites: names of the code tensors inside the file, in graph order.
        decisions: rewrites applied and declined.
    """

    model_path: Path
    signature: Signature
    opset: int
    ir_version: int
    sites: tuple[str, ...]
    decisions: tuple[Decision, ...]
