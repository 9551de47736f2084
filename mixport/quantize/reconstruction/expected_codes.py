"""What the layers of a model will be like where learning starts from least squares, before activations have codes.

Widths under a size budget are chosen before anything is learned. At two bits rounding to nearest says little of what will be learned:
codes of least squared error, and a bias that takes up the mean, come closer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from mixport.progress import Progress
from mixport.quantize.nearest import LayerIntegers, float_weights
from mixport.quantize.ranges import weight_scales
from mixport.quantize.reconstruction.layer_moments import MomentSums
from mixport.quantize.reconstruction.least_squares import FloatLayer, choose
from mixport.quantize.reconstruction.state import dequantised
from mixport.quantize.sensitivity import RoundedLayer, RoundWeight, nearest
from mixport.reconstruction_preset import WIDEST_LEARNED

_SWEEPS = 2
"""Over the codes of a layer: the first one does most, and there is one search for each width."""
_INPUT_STEP = 1.0
"""Of the codes that a layer will read, in the place of one that is not known yet: it only bounds how small scales may be, by 2^-29 of
the bias."""


def expected_codes(
    graph: fx.GraphModule, layers: Iterable[fx.Node], batches: Iterator[Tensor], *, images: int, progress: Progress
) -> RoundWeight:
    """How weights are rounded by least squares on what the layers of the float graph read; 8 bits to nearest.

    Args:
        graph: captured float graph.
        layers: of it, that may be rounded.
        batches: float32 [N, C, H, W].
        images: sum of N, for the bar.
        progress: bars.
    """
    watcher = _Watcher(graph, layers)
    with progress.track("inputs of layers", total=images) as advance, torch.no_grad():
        for batch in batches:
            watcher.see(batch)
            advance(len(batch))

    def rounded(layer: fx.Node, weight: NDArray[np.float32], bits: int) -> RoundedLayer:
        sums = watcher.sums.get(layer)
        seen = None if sums is None or bits > WIDEST_LEARNED else sums.moments()
        if seen is None or not bool(torch.isfinite(seen.covariance).all()):
            return nearest(layer, weight, bits)
        scales, codes = weight_scales(weight, bits=bits)
        start = LayerIntegers(scales=scales, codes=codes, bias=float_weights(graph, layer)[1])
        wanted = FloatLayer(node=layer, weight=torch.as_tensor(weight), bits=bits, x_scale=_INPUT_STEP)
        values = dequantised(choose(wanted, start, seen, sweeps=_SWEEPS), device=torch.device("cpu"))
        return RoundedLayer(values.weight, values.bias)

    return rounded


class _Watcher(fx.Interpreter):
    """Runs the float graph and sums what its layers read.

    Attributes:
        sums: by layer.
    """

    def __init__(self, graph: fx.GraphModule, layers: Iterable[fx.Node]) -> None:
        super().__init__(graph)
        self.sums = {layer: MomentSums(layer) for layer in layers}
        self._images = 0

    def see(self, batch: Tensor) -> None:
        """Run some images."""
        self._images = len(batch)
        self.run(batch)

    def run_node(self, n: fx.Node) -> Any:
        sums = self.sums.get(n)
        if sums is not None and not sums.enough:
            x = self.fetch_args_kwargs_from_env(n)[0][0]
            sums.add(x, x, images=self._images)
        return super().run_node(n)
