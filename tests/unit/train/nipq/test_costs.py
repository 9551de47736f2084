"""What a bit costs at each layer and site, counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor, nn
from torch.nn import functional

from mixport.records.choices.width_table import WidthTable
from mixport.train.nipq.budget import Costs, Product
from mixport.train.nipq.costs import costs_of
from mixport.train.nipq.network import free_sites
from tests.reconstruction import seeded
from tests.trained_nets import given_of

# stem 3 x 3 x 3 -> 8 at 8 x 8 places, body 3 x 3 x 8 -> 12 likewise, narrow 12 -> 8 likewise, wide 3 x 3 x 4
# (two groups of 4) -> 16 at 3 x 3 places, deep 16 -> 8 likewise, head 8 -> 5.
MACS = (64 * 8 * 27, 64 * 12 * 72, 64 * 8 * 12, 9 * 16 * 36, 9 * 8 * 16, 5 * 8)


@pytest.mark.parametrize("target", ["ort-cpu", "onnx-int8"])
def test_costs_by_hand(target: str, tmp_path: Path) -> None:
    """Of one image, however many the graph was captured with."""
    assert costs_of(given_of(tmp_path, target=target).prepared, fixed_bytes=77) == Costs(
        weights=(0, 12 * 72, 8 * 12, 16 * 36, 8 * 16, 0),
        activations=(8 * 64, 12 * 64, 8 * 64, 16 * 9),
        macs=MACS,
        reads=(-1, 0, 1, 2, 3, -1),
        read_bits=(8, 4, 4, 4, 4, 8),
        fixed_bytes=77,
    )


def test_a_table_fixes_what_it_names(tmp_path: Path) -> None:
    table = WidthTable(weights={"body": 3}, activations={"body": 3, "stem": 8})
    found = costs_of(given_of(tmp_path, table=table).prepared)
    assert found.weights == (0, 0, 8 * 12, 16 * 36, 8 * 16, 0)
    assert found.activations == (8 * 64, 16 * 9), "add and wide"
    assert found.reads == (-1, -1, -1, 0, 1, -1) and found.read_bits == (8, 8, 3, 4, 4, 8)
    assert found.macs == MACS and found.fixed_bytes == 0


class Attends(nn.Module):
    """16 tokens of 12 values, two heads of 6."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.q, self.k, self.v = nn.Conv2d(3, 12, 4, 4), *(nn.Linear(12, 12) for _ in range(3))
        self.proj, self.head = nn.Linear(12, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        q, k, v = (part(x).unflatten(2, (2, 6)).transpose(1, 2) for part in (self.q, self.k, self.v))
        x = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(self.proj(x).mean(1))


def test_products_of_two_activations_count(tmp_path: Path) -> None:
    """2 heads of 16 x 16 scores over 6 values each, and 16 x 6 means over 16 tokens each."""
    prepared = given_of(tmp_path, module=seeded(Attends)).prepared
    place = {name: number for number, name in enumerate(free_sites(prepared))}
    assert costs_of(prepared).products == (
        Product(macs=2 * 16 * 16 * 6, reads=(place["q"], place["k"]), read_bits=(4, 4)),
        Product(macs=2 * 16 * 6 * 16, reads=(place["softmax"], place["v"]), read_bits=(4, 4)),
    )


def test_a_product_reads_fixed_widths_too(tmp_path: Path) -> None:
    table = WidthTable(activations={"k": 3, "softmax": 8})
    prepared = given_of(tmp_path, module=seeded(Attends), table=table).prepared
    place = {name: number for number, name in enumerate(free_sites(prepared))}
    scores, means = costs_of(prepared).products
    assert scores.reads == (place["q"], -1) and scores.read_bits == (4, 3)
    assert means.reads == (-1, place["v"]) and means.read_bits == (8, 4)
