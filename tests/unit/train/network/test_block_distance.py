"""Distance of blocks from the float model's, by hand and at its zero."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mixport.records.choices.width_table import WidthTable
from mixport.train.network.block_distance import BlockDistance
from mixport.train.network.quantised import QuantisedNetwork
from tests.trained_nets import CPU, Given, given_of

WEIGHT = 3.0


def compared(given: Given, network: QuantisedNetwork, x: Tensor) -> tuple[Tensor, Tensor | None]:
    blocks = BlockDistance(given.prepared, weight=WEIGHT, device=CPU)
    return blocks.run(x, prepared=network.prepared, student=lambda watch: network(x, watch=watch))


def test_every_block_but_the_first_is_compared(tmp_path: Path) -> None:
    given = given_of(tmp_path)
    blocks = BlockDistance(given.prepared, weight=WEIGHT, device=CPU)
    assert blocks.layers and set(blocks.layers) < {"body", "narrow", "wide", "deep", "head"}
    assert "head" in blocks.layers


def test_distance_by_hand(tmp_path: Path) -> None:
    """Squared difference over squared size of what each layer reads, mean over layers, times the weight."""
    given = given_of(tmp_path)
    network, x = given.quantised(), given.images[:4]
    seen: dict[bool, dict[str, Tensor]] = {False: {}, True: {}}
    for node, width in given.prepared.widths.items():
        for quantised in (False, True):

            def see(value: Tensor, name: str = width.name, kind: bool = quantised) -> None:
                seen[kind][name] = value.detach()

            network._graph.run(x, quantised=network if quantised else None, watch={node: see})
    blocks = BlockDistance(given.prepared, weight=WEIGHT, device=CPU)
    parts = [
        float((seen[True][name] - seen[False][name]).double().square().sum())
        / float(seen[False][name].double().square().sum())
        for name in blocks.layers
    ]
    outputs, distance = compared(given, network, x)
    assert torch.equal(outputs, network(x))
    assert distance is not None
    assert float(distance.detach()) == pytest.approx(WEIGHT * sum(parts) / len(parts), rel=1e-5)


def test_wider_codes_are_nearer_and_gradients_reach_weights_and_steps(tmp_path: Path) -> None:
    found = []
    for bits in (2, 8):
        table = WidthTable(
            weights=dict.fromkeys(("body", "narrow", "wide", "deep"), bits),
            activations=dict.fromkeys(("stem", "body", "add", "wide"), bits),
        )
        given = given_of(tmp_path, table=table)
        network = given.quantised()
        _, distance = compared(given, network, given.images[:4])
        assert distance is not None
        distance.backward()
        number = network.layers.names.index("body")
        gradient = network.layers.weight[number].grad
        assert gradient is not None and bool(gradient.abs().sum() > 0)
        found.append(float(distance.detach()))
    assert found[1] < found[0] / 20


def test_the_float_side_is_the_float_model_s_whatever_is_trained(tmp_path: Path) -> None:
    """Training moves the student's parameters in place; what it is compared with stays."""
    given = given_of(tmp_path)
    network, x = given.quantised(), given.images[:4]
    blocks = BlockDistance(given.prepared, weight=WEIGHT, device=CPU)
    _, before = blocks.run(x, prepared=network.prepared, student=lambda watch: network(x, watch=watch))
    with torch.no_grad():
        for weight in network.layers.weight:
            weight.mul_(-1.0)
    _, moved = blocks.run(x, prepared=network.prepared, student=lambda watch: network(x, watch=watch))
    with torch.no_grad():
        for weight in network.layers.weight:
            weight.mul_(-1.0)
    _, after = blocks.run(x, prepared=network.prepared, student=lambda watch: network(x, watch=watch))
    assert before is not None and moved is not None and after is not None
    assert torch.equal(before, after) and float(moved.detach()) > float(before.detach())
