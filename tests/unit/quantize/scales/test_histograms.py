from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixport.quantize.scales.histograms import BINS, HistogramObserver
from mixport.records.errors import BadInputError


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=40), st.integers(1, 5))
def test_batches_give_the_histogram_of_their_union(values: list[float], pieces: int) -> None:
    data = torch.tensor(values, dtype=torch.float32)
    whole, parts = HistogramObserver("x"), HistogramObserver("x")
    whole.update(data)
    for part in data.chunk(pieces):
        parts.update(part)
    a, b = whole.result(), parts.result()
    assert (a.low, a.high, a.limit) == (b.low, b.high, b.limit)
    assert a.counts.sum() == b.counts.sum() == (len(values) if any(v != 0 for v in values) else 0)
    # histc's float32 bin index may differ by one from the merged bin's for a value on an edge: means agree to
    # a bin's width.
    width = 2 * a.limit / BINS
    assert abs(float((a.counts * a.centres).sum() - (b.counts * b.centres).sum())) <= len(values) * 2 * width


def test_growth_keeps_every_count_at_its_place() -> None:
    observer = HistogramObserver("x")
    observer.update(torch.tensor([0.3, 0.3, -0.9]))
    observer.update(torch.tensor([100.0]))
    result = observer.result()
    assert result.limit == 128.0
    width = 256.0 / BINS
    for value, count in ((0.3, 2), (-0.9, 1), (100.0, 1)):
        index = int((value + 128.0) / width)
        assert result.counts[index] == count


def test_nan_is_refused_by_name() -> None:
    with pytest.raises(BadInputError, match=r"layer1\.conv holds NaN"):
        HistogramObserver("layer1.conv").update(torch.tensor([1.0, float("nan")]))


def test_an_all_zero_tensor_has_a_result() -> None:
    observer = HistogramObserver("x")
    observer.update(torch.zeros(10))
    assert (observer.result().low, observer.result().high) == (0.0, 0.0)
