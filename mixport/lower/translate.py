"""From the fake-quantised torch program to ONNX: torch's own exporter, with our operators kept whole as
mixport:: nodes.

The exporter takes a table of translations for operators it does not know. Ours emit one placeholder node
each, with the site and its integers as attributes; `expand` then turns placeholders into standard operators,
where names can be chosen.
"""

# onnxscript's operators and torch.onnx.export are typed only in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import onnx_ir as ir
import torch
from onnx.defs import OpSchema
from onnxscript.values import Op, Opset

from mixport.arithmetic.torch_ops import NAMESPACE, OPS
from mixport.lower.quiet_exporter import quiet_exporter
from mixport.records.errors import UnsupportedModelError
from mixport.records.quantized_model import QuantizedModel

DOMAIN = NAMESPACE

_OPSET = Opset(DOMAIN, 1)
_FLOAT = "tensor(float)"


def _placeholder(name: str, inputs: dict[str, str], attributes: dict[str, Any]) -> Op:
    schema = OpSchema(
        name,
        DOMAIN,
        1,
        inputs=[OpSchema.FormalParameter(key, kind) for key, kind in inputs.items()],
        outputs=[OpSchema.FormalParameter("y", _FLOAT)],
        attributes=[OpSchema.Attribute(key, kind, "") for key, kind in attributes.items()],
    )
    return Op(_OPSET, name, schema)


_TEXT, _REAL, _INT = OpSchema.AttrType.STRING, OpSchema.AttrType.FLOAT, OpSchema.AttrType.INT
_QUANTIZE = _placeholder(
    "QuantizeDequantize",
    {"x": _FLOAT},
    {"site": _TEXT, "scale": _REAL, "zero_point": _INT, "qmin": _INT, "qmax": _INT, "storage": _TEXT},
)
_WEIGHT = _placeholder(
    "DequantizeWeight", {"codes": "tensor(int8)", "scale": _FLOAT}, {"site": _TEXT, "bits": _INT}
)
_BIAS = _placeholder("DequantizeBias", {"codes": "tensor(int32)", "scale": _FLOAT}, {"site": _TEXT})
_LOOKUP = _placeholder(
    "Lookup",
    {"x": _FLOAT, "table": "tensor(uint8)"},
    {
        "site": _TEXT,
        "in_scale": _REAL,
        "in_zero_point": _INT,
        "scale": _REAL,
        "zero_point": _INT,
        "form": _TEXT,
        "storage": _TEXT,
    },
)
_SOFTMAX = _placeholder("Softmax", {"x": _FLOAT}, {"bits": _INT})
_NUMERATORS = _placeholder(
    "Numerators",
    {"x": _FLOAT},
    {"name": _TEXT, "scale": _REAL, "zero_point": _INT, "step": _REAL, "storage": _TEXT},
)
_LAYER_NORM = _placeholder(
    "LayerNorm",
    {"x": _FLOAT, "weight": _FLOAT, "bias": _FLOAT},
    {"name": _TEXT, "epsilon": _TEXT, "scale": _REAL, "zero_point": _INT, "storage": _TEXT},
)
_ONNX = Opset("", 21)
_POOL, _PAD, _CONSTANT = Op(_ONNX, "GlobalAveragePool"), Op(_ONNX, "Pad"), Op(_ONNX, "Constant")
_SPACE_TO_DEPTH = Op(_ONNX, "SpaceToDepth")
_PAD_MODES: Mapping[str, str] = MappingProxyType(
    {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
)
"""Modes of torch.nn.functional.pad and of ONNX Pad (19)."""


def _quantize_dequantize(
    x: Any, site: str, scale: float, zero_point: int, qmin: int, qmax: int, storage: str
) -> Any:
    return _QUANTIZE(x, site=site, scale=scale, zero_point=zero_point, qmin=qmin, qmax=qmax, storage=storage)


def _dequantize_weight(codes: Any, scale: Any, site: str, bits: int) -> Any:
    return _BIAS(codes, scale, site=site) if bits == 32 else _WEIGHT(codes, scale, site=site, bits=bits)


def _lookup(
    x: Any,
    table: Any,
    site: str,
    in_scale: float,
    in_zero_point: int,
    scale: float,
    zero_point: int,
    qmin: int,
    qmax: int,
    form: str,
    storage: str,
) -> Any:
    return _LOOKUP(
        x,
        table,
        site=site,
        in_scale=in_scale,
        in_zero_point=in_zero_point,
        scale=scale,
        zero_point=zero_point,
        form=form,
        storage=storage,
    )


def _softmax(x: Any, bits: int) -> Any:
    return _SOFTMAX(x, bits=bits)


def _numerators(x: Any, name: str, scale: float, zero_point: int, step: float, storage: str) -> Any:
    return _NUMERATORS(x, name=name, scale=scale, zero_point=zero_point, step=step, storage=storage)


def _layer_norm(
    x: Any, weight: Any, bias: Any, name: str, epsilon: float, scale: float, zero_point: int, storage: str
) -> Any:
    # ONNX attributes hold float32; epsilon takes part in float64 arithmetic.
    return _LAYER_NORM(
        x, weight, bias, name=name, epsilon=repr(epsilon), scale=scale, zero_point=zero_point, storage=storage
    )


def _global_average_pool(x: Any) -> Any:
    return _POOL(x)


def _space_to_depth(x: Any, block: int) -> Any:
    return _SPACE_TO_DEPTH(x, blocksize=block)


def _pad(x: Any, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    """torch counts from the last axis, ONNX from the first. The exporter's own decompositions bring pads by a
    constant, too.
    """
    rank = len(x.shape)
    amounts = [0] * (2 * rank)
    for i in range(len(pad) // 2):
        amounts[rank - 1 - i], amounts[2 * rank - 1 - i] = pad[2 * i], pad[2 * i + 1]
    filler = (_CONSTANT(value_float=float(value)),) if value else ()
    return _PAD(x, _CONSTANT(value_ints=amounts), *filler, mode=_PAD_MODES[mode])


def translate(quantized: QuantizedModel, *, opset: int) -> ir.Model:
    """Export the program; standard operators plus mixport:: placeholders.

    Raises:
        UnsupportedModelError: the exporter has no translation for an operator; the message names it.
    """
    table: dict[Any, Any] = {
        OPS.quantize_dequantize.default: _quantize_dequantize,
        OPS.dequantize_weight.default: _dequantize_weight,
        OPS.lookup.default: _lookup,
        OPS.softmax.default: _softmax,
        OPS.coded_numerators.default: _numerators,
        OPS.layer_norm.default: _layer_norm,
        OPS.global_average_pool.default: _global_average_pool,
        OPS.space_to_depth.default: _space_to_depth,
        torch.ops.aten.pad.default: _pad,
    }
    program = torch.export.load(quantized.program_path)
    try:
        with quiet_exporter():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                custom_translation_table=table,
                opset_version=opset,
                input_names=[port.name for port in quantized.signature.inputs],
                output_names=[port.name for port in quantized.signature.outputs],
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # the exporter wraps its causes in private types
        raise UnsupportedModelError(
            f"an operator has no ONNX form: {_cause(error)}",
            hint="replace the operator in the model, or report the architecture",
        ) from error
    assert exported is not None
    return exported.model


def _cause(error: BaseException) -> str:
    """The innermost message that names an operator."""
    messages: list[str] = []
    current: BaseException | None = error
    while current is not None:
        messages.append(
            next((line for line in str(current).splitlines() if line.strip()), type(current).__name__)
        )
        current = current.__cause__
    named = [m for m in messages if "aten" in m or "torch.ops" in m or "target=" in m]
    return (named or messages)[-1][:300]
