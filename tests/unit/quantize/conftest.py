from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from mixport.quantize.graph.capture import Captured, capture

Capture = Callable[..., Captured]


@pytest.fixture
def captured() -> Capture:
    """Capture a module at 16x16 pixels and check that the rewrites left its values alone."""

    def run(module: nn.Module, *, size: int = 16) -> Captured:
        module = module.eval().requires_grad_(False)
        result = capture(module, input_shape=(1, 3, size, size), dynamic_batch=True)
        x = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(7))
        with torch.no_grad():
            expected: Tensor = module(x)
            got: Tensor = result.graph(x)
        # Folding changes the order of float32 operations: a few units in the last place of the largest value.
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max() + 1))
        return result

    return run


def operators(graph: fx.GraphModule) -> Counter[str]:
    """How often each operator occurs, without namespace and overload."""
    names = (str(node.target) for node in graph.graph.nodes if node.op == "call_function")
    return Counter(
        name.removeprefix("aten.").split(".")[0] if not name.startswith("mixport") else name.split(".")[1]
        for name in names
    )
