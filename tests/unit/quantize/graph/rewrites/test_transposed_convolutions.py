"""Transposed convolutions as convolutions: the same function for every stride, kernel, padding, dilation and
grouping.
"""

from __future__ import annotations

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import fx, nn

from mixport.model.programs.fx_graph import aten, clean, record_shapes
from mixport.quantize.graph.rewrites.batchnorm import fold_batchnorm
from mixport.quantize.graph.rewrites.transposed_convolutions import TRANSPOSED, split_transposed_convolutions

_OPERATORS = {1: aten.conv_transpose1d.default, 2: aten.conv_transpose2d.input}


def graph_of(
    rank: int, weight: torch.Tensor, bias: torch.Tensor | None, numbers: tuple[object, ...]
) -> fx.GraphModule:
    graph = fx.Graph()
    root = nn.Module()
    root.register_buffer("weight", weight)
    root.register_buffer("bias", bias)
    x, w = graph.placeholder("x"), graph.get_attr("weight")
    b = None if bias is None else graph.get_attr("bias")
    graph.output(graph.call_function(_OPERATORS[rank], (x, w, b, *numbers)))
    return fx.GraphModule(root, graph)


@settings(max_examples=120, deadline=None)
@given(data=st.data(), rank=st.integers(1, 2), groups=st.sampled_from([1, 1, 2, 4]), has_bias=st.booleans())
def test_the_same_function(data: st.DataObject, rank: int, groups: int, has_bias: bool) -> None:
    def draw(low: int, high: int) -> list[int]:
        return [data.draw(st.integers(low, high)) for _ in range(rank)]

    sizes, kernel, stride, dilation = draw(1, 6), draw(1, 5), draw(1, 4), draw(1, 2)
    padding, output_padding = (
        draw(0, 3),
        [data.draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)],
    )
    out = [
        (size - 1) * s - 2 * p + d * (k - 1) + o + 1
        for size, k, s, d, p, o in zip(sizes, kernel, stride, dilation, padding, output_padding, strict=True)
    ]
    assume(min(out) > 0)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, *kernel, generator=generator)
    bias = torch.randn(3 * groups, generator=generator) if has_bias else None
    x = torch.randn(2, 4, *sizes, generator=generator)
    module = graph_of(rank, weight, bias, (stride, padding, output_padding, groups, dilation))
    wanted = module(x)
    record_shapes(module, x)
    assert len(split_transposed_convolutions(module)) == 1
    clean(module)
    assert not any(node.target in TRANSPOSED for node in module.graph.nodes)
    # Negative pads would crop, which integer pads do not.
    assert all(
        min(node.args[1]) >= 0 for node in module.graph.nodes if node.target is aten.constant_pad_nd.default
    )
    # Sums of at most 100 float32 products in another order.
    torch.testing.assert_close(module(x), wanted, rtol=1e-5, atol=1e-5)


def test_a_batch_norm_behind_is_folded_first() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 5, 5, generator=generator)
    module = graph_of(
        2,
        torch.randn(4, 3, 2, 2, generator=generator),
        torch.randn(6, generator=generator),
        ([2, 2], [0, 0], [0, 0], 2),
    )
    transposed = next(node for node in module.graph.nodes if node.target in TRANSPOSED)
    for name in ("gamma", "beta", "mean", "var"):
        module.register_buffer(name, torch.rand(6, generator=generator) + 0.5)
    with module.graph.inserting_after(transposed):
        values = [module.graph.get_attr(name) for name in ("gamma", "beta", "mean", "var")]
    with module.graph.inserting_after(values[0]):
        norm = module.graph.call_function(
            aten.batch_norm.default, (transposed, *values, False, 0.1, 1e-5, True)
        )
    transposed.replace_all_uses_with(norm, delete_user_cb=lambda user: user is not norm)
    module.recompile()
    wanted = module(x)
    record_shapes(module, x)
    assert fold_batchnorm(module) == []
    split_transposed_convolutions(module)
    clean(module)
    torch.testing.assert_close(module(x), wanted, rtol=1e-5, atol=1e-5)
