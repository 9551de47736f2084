from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from mixport.model.programs.fx_graph import clean, record_shapes
from mixport.quantize.graph.canonical import drop_no_ops
from mixport.quantize.graph.capture import quiet_torch

Rewrite = Callable[[fx.GraphModule], object]
Rewritten = Callable[..., fx.GraphModule]


@pytest.fixture
def rewritten() -> Rewritten:
    """Decompose a module to core ATen, apply rewrites in order, and check that its values stay."""

    def run(module: nn.Module, *rewrites: Rewrite) -> fx.GraphModule:
        module = module.eval().requires_grad_(False)
        x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(7))
        shapes = ({0: torch.export.Dim("batch", min=1)},)
        with quiet_torch():
            program = torch.export.export(module, (x,), dynamic_shapes=shapes, strict=False)
            graph = program.run_decompositions().module(check_guards=False)
        record_shapes(graph, x)
        drop_no_ops(graph)
        for rewrite in rewrites:
            clean(graph)
            record_shapes(graph, x)
            rewrite(graph)
        clean(graph)
        with torch.no_grad():
            expected: Tensor = module(x)
            # Products in another order: float32 sums are in another order.
            torch.testing.assert_close(graph(x), expected, rtol=1e-4, atol=1e-5)
        return graph

    return run
