"""A build's look at latency: when a file counts as slower than the float model, and what is then said."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import onnx
import onnx.parser
import pytest

from mixport.pipeline.latency import BuildLatency, build_latency, is_slower
from mixport.pipeline.warnings import slower_than_float
from mixport.records.progress import SilentProgress
from mixport.records.targets import SessionRules
from mixport.validate.run.latency import Latency, summarise

POLICY = SessionRules(optimization_level="all", threads=1)


def latency(*, median: float, fastest: float, first: float, third: float) -> Latency:
    return Latency(
        path=Path("f"),
        median_ms=median,
        fastest_ms=fastest,
        quartiles_ms=(first, third),
        p90_ms=third,
        rounds=20,
        size_bytes=1,
    )


FLOAT = latency(median=10.0, fastest=9.0, first=9.5, third=11.0)


@pytest.mark.parametrize(
    ("own", "slower"),
    [
        (latency(median=12.0, fastest=11.5, first=11.6, third=12.5), True),
        (latency(median=8.0, fastest=7.0, first=7.5, third=8.5), False),
        # 4 % is noise, wherever the quartiles are
        (latency(median=10.4, fastest=10.3, first=11.1, third=11.2), False),
        # the quartiles overlap
        (latency(median=12.0, fastest=11.5, first=10.9, third=12.5), False),
        # other programs had it: the fastest round is as fast as float's
        (latency(median=20.0, fastest=9.1, first=15.0, third=30.0), False),
    ],
)
def test_slower_means_by_more_than_noise(own: Latency, slower: bool) -> None:
    assert is_slower(own, FLOAT) is slower


def test_a_difference_that_nobody_feels_is_none() -> None:
    small = latency(median=0.02, fastest=0.02, first=0.02, third=0.02)
    assert not is_slower(latency(median=0.08, fastest=0.08, first=0.08, third=0.08), small)
    assert is_slower(latency(median=0.2, fastest=0.2, first=0.2, third=0.2), small)


def test_the_figures_of_some_rounds() -> None:
    path = Path(__file__)
    found = summarise(path, [5.0, 1.0, 2.0, 4.0, 3.0])
    assert (found.median_ms, found.fastest_ms, found.quartiles_ms, found.rounds) == (3.0, 1.0, (1.5, 4.5), 5)
    assert found.size_bytes == path.stat().st_size


def write(path: Path, products: int) -> Path:
    """A model that multiplies a [1, 3, 192, 192] image by itself so many times."""
    names = ["x", *(f"t{i}" for i in range(products - 1)), "y"]
    body = "\n".join(f"{b} = MatMul({a}, x)" for a, b in pairwise(names))
    text = (
        '<ir_version: 10, opset_import: ["" : 21]> g (float[1,3,192,192] x) => (float[1,3,192,192] y) '
        f"{{ {body} }}"
    )
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def test_a_slow_file_beside_a_fast_one(tmp_path: Path) -> None:
    # twelve times the work: no machine is so noisy that the ratio would be below 2
    slow, fast = write(tmp_path / "slow.onnx", 24), write(tmp_path / "fast.onnx", 2)
    found = build_latency(slow, fast, session=POLICY, progress=SilentProgress())
    assert found.slower and found.float_ms is not None and found.ratio is not None
    assert found.ratio == found.model_ms / found.float_ms > 2
    (warning,) = slower_than_float(found)
    assert warning.about == "latency"
    assert warning.message.startswith(
        f"the file is slower than the float model: {found.model_ms:.2f} ms, {found.ratio:.2f} times "
    )
    assert warning.hint == "mixport bench BUNDLE --profile shows where the time goes"
    assert [*slower_than_float(build_latency(fast, slow, session=POLICY, progress=SilentProgress()))] == []


def test_a_file_alone(tmp_path: Path) -> None:
    found = build_latency(
        write(tmp_path / "f.onnx", 1), None, session=POLICY, progress=SilentProgress(), reason="no exporter"
    )
    assert found == BuildLatency(
        model_ms=found.model_ms, float_ms=None, ratio=None, model_quartiles_ms=found.model_quartiles_ms,
        float_quartiles_ms=None,
        rounds=found.rounds, slower=False, reason="no exporter",
    )  # fmt: skip
    assert [*slower_than_float(found)] == []
