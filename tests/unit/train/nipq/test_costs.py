"""What a bit costs at each layer and site, counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixport.records.choices.width_table import WidthTable
from mixport.train.nipq.budget import Costs
from mixport.train.nipq.costs import costs_of
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
