"""The mixport:: torch operators: quantisation as graph nodes, written by `quantize` and read by `lower`.

They are torch custom operators (torch.library), so torch.export keeps each as one opaque node that carries
the site's name, scale, zero point and range as plain arguments. Their eager meaning is the fake-quantised
float value.
"""

# torch.library leaves the function types of its decorators without parameters.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixport.arithmetic.portable_float import REACH, SQUARINGS, has_integer_mean, variance_offset

NAMESPACE = "mixport"

OPS: Any = torch.ops.mixport
"""The operators below, as they stand in a graph: OPS.lookup.default. Importing them from here registers
them.
"""


@torch.library.custom_op("mixport::quantize_dequantize", mutates_args=())
def quantize_dequantize(
    x: Tensor, site: str, scale: float, zero_point: int, qmin: int, qmax: int, storage: str
) -> Tensor:
    """(clamp(round(x / scale) + zero_point, qmin, qmax) - zero_point) * scale, per tensor, float32 in and
    out.
    """
    step = torch.tensor(scale, dtype=torch.float32, device=x.device)
    return (torch.clamp(torch.round(x / step), qmin - zero_point, qmax - zero_point)) * step


@quantize_dequantize.register_fake
def _(x: Tensor, site: str, scale: float, zero_point: int, qmin: int, qmax: int, storage: str) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("mixport::dequantize_weight", mutates_args=())
def dequantize_weight(codes: Tensor, scale: Tensor, site: str, bits: int) -> Tensor:
    """codes * scale along axis 0: int8 [O, ...] (weights) or int32 [O] (bias), float32 [O] -> float32 of
    codes' shape.
    """
    return codes.to(torch.float32) * scale.view(-1, *([1] * (codes.dim() - 1)))


@dequantize_weight.register_fake
def _(codes: Tensor, scale: Tensor, site: str, bits: int) -> Tensor:
    return torch.empty_like(codes, dtype=torch.float32)


@torch.library.custom_op("mixport::lookup", mutates_args=())
def lookup(
    x: Tensor,
    table: Tensor,
    site: str,
    in_scale: float,
    in_zero_point: int,
    scale: float,
    zero_point: int,
    qmin: int,
    qmax: int,
    form: str,
    storage: str,
) -> Tensor:
    """A function of 8-bit codes: x holds (code - in_zero_point) * in_scale, table is uint8 [256]; gives the
    dequantised entry.

    `qmin` and `qmax` are the smallest and the largest entry; `form` is how lowering writes it, see
    mixport.lower.operators.tables. Codes, entries and zero points count from 0; `storage` int8 has all of
    them smaller by 128 in the file.
    """
    index = torch.round(x / torch.tensor(in_scale, dtype=torch.float32, device=x.device)) + in_zero_point
    entry = table[index.to(torch.int64)].to(torch.float32)
    return (entry - zero_point) * torch.tensor(scale, dtype=torch.float32, device=x.device)


@lookup.register_fake
def _(
    x: Tensor,
    table: Tensor,
    site: str,
    in_scale: float,
    in_zero_point: int,
    scale: float,
    zero_point: int,
    qmin: int,
    qmax: int,
    form: str,
    storage: str,
) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("mixport::global_average_pool", mutates_args=())
def global_average_pool(x: Tensor) -> Tensor:
    """Mean over the two last axes of [N, C, H, W], kept as size 1 (ONNX GlobalAveragePool)."""
    return x.mean((-2, -1), keepdim=True)


@global_average_pool.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1], 1, 1))


def _keep_size(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.size = inputs[0].shape[-2:]


def _spread(ctx: Any, grad: Tensor) -> Tensor:
    rows, columns = ctx.size
    return (grad / (rows * columns)).expand(-1, -1, rows, columns)


global_average_pool.register_autograd(_spread, setup_context=_keep_size)


@torch.library.custom_op("mixport::space_to_depth", mutates_args=())
def space_to_depth(x: Tensor, block: int) -> Tensor:
    """Blocks of pixels as channels, [N, C, H, W] -> [N, block * block * C, H / block, W / block] (ONNX
    SpaceToDepth).

    Channels are ordered by row in the block, column in the block, channel; torch's pixel_unshuffle has the
    channel first.
    """
    n, channels, rows, columns = x.shape
    blocks = x.reshape(n, channels, rows // block, block, columns // block, block).permute(0, 3, 5, 1, 2, 4)
    y = x.new_empty(
        (n, block * block * channels, rows // block, columns // block)
    )  # never a view of x, which torch forbids
    y.view(blocks.shape).copy_(blocks)
    return y


@space_to_depth.register_fake
def _(x: Tensor, block: int) -> Tensor:
    return x.new_empty((x.shape[0], block * block * x.shape[1], x.shape[2] // block, x.shape[3] // block))


def _keep_block(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    ctx.block = inputs[1]


def _channels_as_blocks(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    block: int = ctx.block
    n, channels, rows, columns = grad.shape
    channels //= block * block
    pixels = grad.reshape(n, block, block, channels, rows, columns).permute(0, 3, 4, 1, 5, 2)
    return pixels.reshape(n, channels, rows * block, columns * block), None


space_to_depth.register_autograd(_channels_as_blocks, setup_context=_keep_block)


@torch.library.custom_op("mixport::softmax", mutates_args=())
def softmax(x: Tensor, bits: int) -> Tensor:
    """Softmax over the last axis as mixport.arithmetic.portable_float.softmax computes it, operation by
    operation.
    """
    t = torch.clamp_max(x.amax(-1, keepdim=True) - x, REACH) * 2.0**-SQUARINGS
    power = (t * 0.5 - 1.0) * t + 1.0
    for _ in range(SQUARINGS):
        power = power * power
    numerators = torch.clamp_max(torch.round(power / 2.0**-bits), 65535.0)
    return numerators / numerators.sum(-1, keepdim=True)


@softmax.register_fake
def _(x: Tensor, bits: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("mixport::layer_norm", mutates_args=())
def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    name: str,
    epsilon: float,
    scale: float,
    zero_point: int,
    storage: str,
) -> Tensor:
    """LayerNorm over the last axis as mixport.arithmetic.portable_float.layer_norm computes it; x holds (code
    - zero_point) * scale.
    """
    codes = torch.round(x / torch.tensor(scale, dtype=torch.float32, device=x.device)) + zero_point
    wide, length = codes.double(), x.shape[-1]
    total, squares = wide.sum(-1, keepdim=True), (wide * wide).sum(-1, keepdim=True)
    spread = squares * length - total * total + variance_offset(length, epsilon=epsilon, scale=scale)
    mean = (
        torch.round(total.float() / torch.tensor(float(length), device=x.device))
        if has_integer_mean(storage)
        else (total / length).float()
    )
    scaled = (codes - mean) * (length / torch.sqrt(spread)).float() * weight
    return (scaled + bias if bool(bias.any()) else scaled).contiguous()


@layer_norm.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    name: str,
    epsilon: float,
    scale: float,
    zero_point: int,
    storage: str,
) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("mixport::softmax_numerators", mutates_args=())
def softmax_numerators(x: Tensor, factor: float) -> Tensor:
    """exp(factor * (x - max(x))) over the last axis: a softmax of factor * x before its division."""
    return torch.exp((x - x.amax(-1, keepdim=True)) * factor)


@softmax_numerators.register_fake
def _(x: Tensor, factor: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _keep_numerators(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
    ctx.factor = inputs[1]
    ctx.save_for_backward(output)


def _through_numerators(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (numerators,) = ctx.saved_tensors
    to_x = grad * numerators * ctx.factor
    largest = numerators == 1.0
    return to_x - largest * (to_x.sum(-1, keepdim=True) / largest.sum(-1, keepdim=True)), None


softmax_numerators.register_autograd(_through_numerators, setup_context=_keep_numerators)


@torch.library.custom_op("mixport::coded_numerators", mutates_args=())
def coded_numerators(
    x: Tensor, name: str, scale: float, zero_point: int, step: float, storage: str
) -> Tensor:
    """The same of codes, as mixport.arithmetic.attention_softmax computes it; x holds (code - zero_point) *
    scale, codes of 8 bits.

    exp is taken in float64: the numerators are chosen so that every machine's exp rounds to the same codes.
    """
    codes = torch.round(x / torch.tensor(scale, dtype=torch.float32, device=x.device))
    below = codes - codes.amax(-1, keepdim=True)
    return torch.exp(below.double() * step).float()


@coded_numerators.register_fake
def _(x: Tensor, name: str, scale: float, zero_point: int, step: float, storage: str) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)
