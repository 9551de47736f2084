"""From a trained network to integers: rounded once, with room for biases and within the pair bound."""

from __future__ import annotations

import numpy as np
from torch import fx

from mixport.quantize.integers.nearest import LayerIntegers, read_params, room_for_bias
from mixport.quantize.integers.settle import keep_pair_bound
from mixport.quantize.prepared import Assignment, Prepared
from mixport.records.decision import Decision
from mixport.train.network.graph_weights import as_float32
from mixport.train.network.quantised import QuantisedNetwork, code_range


def finish(network: QuantisedNetwork, prepared: Prepared) -> Assignment:
    """Scales, codes and biases as they ship; what exact requantisation moves is left to `settle`.

    Args:
        network: fine-tuned.
        prepared: what it was made from.
    """
    params, grid = network.params(), prepared.rule.grid
    integers: dict[fx.Node, LayerIntegers] = {}
    decisions: list[Decision] = []
    for number, (node, width) in enumerate(prepared.widths.items()):
        weight = as_float32(network.layers.weight[number])
        kept = network.layers.bias_of(number, network.shipped_weight(number))
        bias = None if kept is None else as_float32(kept)
        scales = (
            grid.snap_weights(as_float32(network.scale[number]))
            if not grid.moves_freely
            else (as_float32(network.scale[number]))
        )
        low, high = code_range(width.bits)
        wide = scales.reshape(-1, *[1] * (weight.ndim - 1))
        # float32, as in training: a weight that lies between two codes must not fall to the other one here
        codes = np.clip(np.rint(weight / wide), low, high).astype(np.int8)
        x = read_params(prepared.plan, node, params)
        scales, codes, raised = room_for_bias(weight, bias, scales, codes, x_scale=x.scale, grid=grid)
        if raised:
            what = f"weight scale of {raised} channels raised"
            decisions.append(Decision(where=width.name, what=what, why="their bias would not fit int32"))
        limit = prepared.target.accumulator.pair_limit
        if limit is not None:
            scales, codes, changed = keep_pair_bound(
                width.name,
                weight,
                scales,
                codes,
                bits=width.bits,
                groups=network.layers.groups[number],
                x=x,
                limit=limit,
                grid=grid,
            )
            decisions += changed
        integers[node] = LayerIntegers(scales=scales, codes=codes, bias=bias)
    for where, times in zip(("weight scales", "activation steps"), network.held, strict=True):
        if int(times):
            what = "held at a sixteenth or sixteen times their first value"
            decisions.append(Decision(where=where, what=what, why=f"{int(times)} times"))
    return Assignment(params=params, widths=prepared.widths, integers=integers, decisions=tuple(decisions))
