"""Modules with one awkward structure each, found by trying to break the claim: every one must build, exactly
and rightly.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CONFIG = {"input_size": (3, 16, 16), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


class Structure(nn.Module):
    """Stem, the structure, global mean, head."""

    def __init__(
        self, body: Callable[[nn.Module, Tensor], Tensor], parts: dict[str, nn.Module], *, features: int = 8
    ) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 8, 3, padding=1), body, nn.Linear(features, 10)
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(self, torch.relu(self.stem(x)))
        return self.head(y.mean((2, 3)) if y.dim() == 4 else y)


def _conv() -> nn.Conv2d:
    return nn.Conv2d(8, 8, 3, padding=1)


def _make(body: Callable[[nn.Module, Tensor], Tensor], **parts: nn.Module) -> nn.Module:
    model = Structure(body, parts).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() > 1:
                value.copy_(torch.randn(value.shape, generator=generator) * (2.0 / value[0].numel()) ** 0.5)
            elif name.endswith("bias"):
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    model.pretrained_cfg = _CONFIG  # type: ignore[assignment]
    return model


def relu_on_a_stream() -> nn.Module:
    """A sum behind a Relu that a float normalisation reads: 16-bit codes, and the Relu must not get lost."""
    return _make(
        lambda m, x: m.c(m.norm(torch.relu(m.b(x) + torch.relu(x + m.a(x))))),
        a=_conv(),
        b=_conv(),
        c=_conv(),
        norm=nn.GroupNorm(2, 8),
    )


def safe_quotient() -> nn.Module:
    """Two activations divided. The second is never 0 here, which nothing in the file says."""
    return _make(lambda m, x: m.c(m.b(x) / (1.0 + torch.relu(m.a(x)))), a=_conv(), b=_conv(), c=_conv())


def boolean_mask() -> nn.Module:
    """Attention with a mask that selects."""

    def body(m: nn.Module, x: Tensor) -> Tensor:
        tokens = m.pool(x).flatten(2).transpose(1, 2)
        mask = torch.ones(16, 16, dtype=torch.bool).tril()
        return F.scaled_dot_product_attention(m.q(tokens), m.k(tokens), m.v(tokens), attn_mask=mask)[:, -1]

    return _make(body, pool=nn.MaxPool2d(4), q=nn.Linear(8, 8), k=nn.Linear(8, 8), v=nn.Linear(8, 8))


def _attention(
    mask: Tensor | None = None, *, heads: int = 2, groups: int = 2, causal: bool = False
) -> nn.Module:
    """Attention of 16 tokens; `groups` keys and values for all heads."""

    def body(m: nn.Module, x: Tensor) -> Tensor:
        tokens = m.pool(x).flatten(2).transpose(1, 2)
        q, k, v = (
            part(tokens).reshape(-1, 16, number, 4).transpose(1, 2)
            for part, number in ((m.q, heads), (m.k, groups), (m.v, groups))
        )
        shared = {"enable_gqa": True} if groups != heads else {}
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, **shared)
        return m.o(y.transpose(1, 2).reshape(-1, 16, 4 * heads))[:, -1]

    wide = (
        nn.Linear(8, 4 * heads),
        nn.Linear(8, 4 * groups),
        nn.Linear(8, 4 * groups),
        nn.Linear(4 * heads, 8),
    )
    return _make(body, pool=nn.MaxPool2d(4), q=wide[0], k=wide[1], v=wide[2], o=wide[3])


def causal_attention() -> nn.Module:
    """A mask that the operator makes itself."""
    return _attention(causal=True)


def grouped_queries() -> nn.Module:
    """Four heads share two keys and values."""
    return _attention(heads=4)


def attention_that_sees_nothing() -> nn.Module:
    """A row of the mask hides everything: torch gives zeros, a softmax NaN."""
    return _attention(torch.arange(15, -1, -1)[:, None] > torch.zeros(16))


def cross_attention() -> nn.Module:
    """torch's own module with three different inputs: it splits one constant weight in three."""

    def body(m: nn.Module, x: Tensor) -> Tensor:
        tokens = m.pool(x).flatten(2).transpose(1, 2)
        return m.a(m.q(tokens), m.k(tokens), tokens, need_weights=False)[0][:, -1]

    return _make(
        body,
        pool=nn.MaxPool2d(4),
        q=nn.Linear(8, 8),
        k=nn.Linear(8, 8),
        a=nn.MultiheadAttention(8, 2, batch_first=True),
    )


def average_of_averages() -> nn.Module:
    """Rewritten pools in a row: the second must know the first one's shape."""
    return _make(lambda m, x: F.avg_pool2d(F.avg_pool2d(m.a(x), 2), 3, 1, 1, divisor_override=5), a=_conv())


def average_cut_at_the_border() -> nn.Module:
    """Windows that ceil_mode lets reach over the end of a map of 15 pixels."""
    return _make(
        lambda m, x: m.b(F.avg_pool2d(m.a(x)[:, :, 1:, 1:], 2, 2, ceil_mode=True)), a=_conv(), b=_conv()
    )


def average_with_padding_cut_behind_a_relu() -> nn.Module:
    """The same with padding, which counts."""
    return _make(
        lambda m, x: m.b(F.avg_pool2d(torch.relu(m.a(x)), 3, 2, 1, ceil_mode=True)), a=_conv(), b=_conv()
    )


def average_in_three_axes() -> nn.Module:
    """A pool over channels too, cut in every axis."""
    return _make(
        lambda m, x: m.b(F.avg_pool3d(m.a(x)[:, None, :7], 2, 2, ceil_mode=True)[:, 0]),
        a=_conv(),
        b=nn.Conv2d(4, 8, 3),
    )


def squeezed() -> nn.Module:
    """Axes of one element are dropped, whichever they are: the batch is none of them, for one image
    either.
    """
    return _make(lambda m, x: m.b(m.a(x).squeeze().reshape(x.shape)), a=_conv(), b=_conv())


def means_that_hardly_vary() -> nn.Module:
    """An instance norm takes the mean away that the pool then asks for: its scale would be too fine for the
    integer kernel.
    """
    return _make(
        lambda m, x: m.b(x) * torch.sigmoid(F.adaptive_avg_pool2d(m.norm(m.a(x)), 1)),
        a=_conv(),
        b=_conv(),
        norm=nn.InstanceNorm2d(8),
    )


def largest_channel() -> nn.Module:
    """One result of an operator that has two."""
    return _make(lambda m, x: m.b(x * torch.sigmoid(m.a(x).max(1, keepdim=True)[0])), a=_conv(), b=_conv())


def names_of_ours() -> nn.Module:
    """Layers that are called as the lowering would call its own tensors."""
    return _make(lambda m, x: m.t1(torch.relu(m.t0(x))) + x, t0=_conv(), t1=_conv())


def slices_written_in_place() -> nn.Module:
    """Two slice assignments in a row."""

    def body(m: nn.Module, x: Tensor) -> Tensor:
        y = m.a(x)
        y[:, :4] += x[:, :4]
        y[:, 4:-1] += x[:, 4:-1]
        return m.b(y)

    return _make(body, a=_conv(), b=_conv())


def norm_shared_and_chained() -> nn.Module:
    """Two normalisations in a row, the first with two readers, on a square map as wide as it has channels."""

    def body(m: nn.Module, x: Tensor) -> Tensor:
        a = m.n1(F.max_pool2d(m.a(x), 2))
        return m.b(m.n2(a) + a)

    return _make(body, a=_conv(), b=_conv(), n1=nn.BatchNorm2d(8), n2=nn.BatchNorm2d(8))


def batch_of_one() -> nn.Module:
    """A forward that names its batch: one image a call."""
    return _make(lambda m, x: m.a(F.max_pool2d(x, 4).reshape(1, 8, 4, 4)), a=_conv())


def affine_that_changes_nothing() -> nn.Module:
    """Times one, plus zero, as HGNetV2 begins: a runtime drops both, and would merge the quantisers on their
    two sides.
    """

    def body(m: nn.Module, x: Tensor) -> Tensor:
        y = m.scale * torch.relu(m.a(x)) + m.shift
        return m.c(y + m.b(x))[:, :, 5, 7]

    model = _make(body, a=_conv(), b=_conv(), c=_conv())
    with (
        torch.no_grad()
    ):  # a sum smaller than its parts: it takes a finer scale, which rounds what the parts have lost
        model.b.weight.copy_(-0.8 * model.a.weight)
    model.scale, model.shift = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))
    return model


def clamp_between_transposes() -> nn.Module:
    """A Relu on channels last: transposes that cancel stand between the quantisers of convolution and
    Relu.
    """
    return _make(
        lambda m, x: m.b(torch.relu(m.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))[:, :, 5, 7],
        a=_conv(),
        b=_conv(),
    )


def powers_of_two() -> nn.Module:
    """Factors of the model before a sum, before a convolution, and between a linear layer and a
    normalisation.
    """

    def body(m: nn.Module, x: Tensor) -> Tensor:
        y = m.b((x + m.twice * m.a(x)) * m.halves)
        return m.norm(m.linear(y.mean((2, 3))) * m.twice)

    model = _make(body, a=_conv(), b=_conv(), linear=nn.Linear(8, 8), norm=nn.LayerNorm(8))
    model.twice, model.halves = nn.Parameter(torch.tensor([2.0])), nn.Parameter(torch.tensor(0.5))
    return model


def norm_behind_linear() -> nn.Module:
    """A normalisation of [N, C] that reads 16-bit codes as they are, as EfficientViT's head does."""
    return _make(
        lambda m, x: F.gelu(m.norm(m.linear(x.mean((2, 3))))), linear=nn.Linear(8, 8), norm=nn.LayerNorm(8)
    )


def position_made_in_forward() -> nn.Module:
    """A position code from arange and sines, repeated for every image, behind a layer of its own."""

    def body(m: nn.Module, x: Tensor) -> Tensor:
        place = torch.arange(1, 17, dtype=torch.float32) * 6.28 / (16 + 1e-6)
        waves = torch.stack([(place / 10.0 ** (k / 8)).sin() for k in range(8)])
        code = m.project((waves[None, :, :, None] + waves[None, :, None, :]).repeat(x.shape[0], 1, 1, 1))
        return m.b(m.a(x) + code)

    return _make(body, a=_conv(), b=_conv(), project=nn.Conv2d(8, 8, 1))


def largest_token() -> nn.Module:
    """A maximum of floats: exact, so that no site behind it is behind an island."""
    return _make(lambda m, x: m.b(torch.stack([m.a(x), x * 0.3], 1).amax(1)), a=_conv(), b=_conv())


def borders() -> nn.Module:
    """Every border of torch.nn.functional.pad, a crop, and a convolution that wraps around."""

    def body(m: nn.Module, x: Tensor) -> Tensor:
        y = F.pad(F.pad(m.a(x), (2, 1, 0, 3), mode="reflect"), (-1, 2, 1, -1), mode="replicate")
        return m.b(F.pad(torch.relu(m.c(y)), (1, 1, 2, 0), mode="circular"))

    return _make(body, a=_conv(), b=_conv(), c=nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"))


def uneven_max_pools() -> nn.Module:
    """TensorFlow's padding of max pools, by minus infinity on two sides; then one axis, and three."""

    def body(m: nn.Module, x: Tensor) -> Tensor:
        y = F.max_pool2d(F.pad(m.a(x), (0, 1, 0, 1), value=float("-inf")), 3, 2)
        y = F.max_pool1d(m.b(y).flatten(2), 3, 2, 1).unsqueeze(2)
        return m.c(F.max_pool3d(y.unsqueeze(1), (2, 1, 2)).squeeze(1))

    return _make(body, a=_conv(), b=_conv(), c=nn.Conv2d(4, 8, 1))


def blurred() -> nn.Module:
    """Downsampling behind a blur with mirrored borders."""
    taps = torch.tensor([1.0, 2.0, 1.0]) / 4

    def body(m: nn.Module, x: Tensor) -> Tensor:
        y = F.pad(torch.relu(m.a(x)), (1, 1, 1, 1), mode="reflect")
        return m.b(F.conv2d(y, (taps[:, None] * taps).expand(8, 1, 3, 3), stride=2, groups=8))

    return _make(body, a=_conv(), b=_conv())


def gated_residuals() -> nn.Module:
    """Products with a gate whose result meets a sum: its scale is tied, so that the gate's has to move."""

    def body(m: nn.Module, x: Tensor) -> Tensor:
        for conv, gate in ((m.a, m.b), (m.c, m.d)):
            y = conv(x)
            x = torch.relu(x + y * torch.sigmoid(gate(y.mean((2, 3), keepdim=True))))
        return x

    return _make(body, a=_conv(), b=nn.Conv2d(8, 8, 1), c=_conv(), d=nn.Conv2d(8, 8, 1))


def hard_swishes() -> nn.Module:
    """Beyond both bends, within them, and of a tensor that others read as well."""

    def body(m: nn.Module, x: Tensor) -> Tensor:
        x = F.hardswish(4.0 * m.a(x))
        y = m.b(F.hardswish(0.2 * m.c(x)))
        return F.hardswish(y) + y

    return _make(body, a=_conv(), b=_conv(), c=_conv())


def functions_between_convolutions() -> nn.Module:
    """A table, a byte table, a float function and a product with its gate, channels last where the runtime
    has them so.
    """

    def body(m: nn.Module, x: Tensor) -> Tensor:
        return F.silu(m.d(torch.tanh(m.c(torch.sigmoid(m.b(F.gelu(m.a(x))))))))

    return _make(body, a=_conv(), b=_conv(), c=_conv(), d=_conv())


def places_of_maxima() -> nn.Module:
    """A max pool that gives indices, and the operator that takes them."""

    def body(m: nn.Module, x: Tensor) -> Tensor:
        y, places = F.max_pool2d(m.a(x), 2, return_indices=True)
        return m.b(F.max_unpool2d(y, places, 2))

    return _make(body, a=_conv(), b=_conv())


class MixesImages(nn.Module):
    """Batch statistics at inference: no fixed graph can stand for it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)
        self.pretrained_cfg = _CONFIG

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.head((y - y.mean((0, 2, 3), keepdim=True)).abs().mean((2, 3)))
