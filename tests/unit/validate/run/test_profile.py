"""Profiles: events of the runtime become medians of nodes, each with its module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnx.parser
import pytest

from mixport.records.progress import SilentProgress
from mixport.validate.run.fusion_audit import OptimisedNode
from mixport.validate.run.latency import WARMUP_RUNS
from mixport.validate.run.profile import profile, read_profile, totals

NODES = (
    OptimisedNode(op="Cast", name="", inputs=("x",), outputs=("t",), data="other"),
    OptimisedNode(op="QLinearConv", name="stem/Conv", inputs=("t",), outputs=("u",), data="codes"),
    OptimisedNode(op="Mul", name="m", inputs=("u",), outputs=("y",), data="float"),
)
COLD = [9000] * WARMUP_RUNS


def events(**durations: list[int]) -> list[dict[str, Any]]:
    """Kernel times in microseconds, by `name__op`, round by round; with events that are none of nodes."""
    found: list[dict[str, Any]] = [{"cat": "Session", "name": "model_run", "dur": 99999, "args": {}}]
    for turn in range(max(map(len, durations.values()))):
        for index, (key, times) in enumerate(durations.items()):
            name, _, op = key.partition("__")
            args = {"op_name": op, "node_index": str(index)}
            found.append({"cat": "Node", "name": f"{name}_fence_before", "dur": 7, "args": {"op_name": op}})
            found.append({"cat": "Node", "name": f"{name}_kernel_time", "dur": times[turn], "args": args})
    return found


def test_medians_without_the_first_runs() -> None:
    found = read_profile(
        events(
            Cast_0__Cast=[*COLD, 10, 12, 500], stem__QLinearConv=[*COLD, 70, 60, 65], m__Mul=[*COLD, 1, 2, 3]
        ),
        NODES,
        sites=["stem"],
        rounds=3,
    )
    assert found.rounds == 3
    assert [(one.name, one.op, one.module, one.ms) for one in found.nodes] == [
        ("Cast_0", "Cast", "stem", 0.012),
        ("stem", "QLinearConv", "stem", 0.065),
        ("m", "Mul", "stem", 0.002),
    ]
    assert found.total_ms == pytest.approx(0.079)
    assert found.integer_ms == pytest.approx(0.065)
    assert [one.op for one in found.float_nodes] == ["Mul"]
    assert found.unattributed_ms == 0.0


def test_an_order_that_is_not_the_graphs_is_matched_by_names_alone() -> None:
    found = read_profile(events(m__Mul=[*COLD, 4], Cast_0__Cast=[*COLD, 5]), NODES, sites=["stem"], rounds=1)
    assert [(one.name, one.module, one.data) for one in found.nodes] == [
        ("m", "stem", "float"),
        ("Cast_0", None, "other"),
    ]
    assert found.unattributed_ms == pytest.approx(0.005)


def test_what_a_loop_runs_twice_counts_twice_and_a_branch_as_often_as_it_is_taken() -> None:
    twice = [one for one in events(loop__A=[*COLD, 10]) for _ in range(2)]
    seldom = events(branch__B=[8, 8])  # in two of the four runs
    found = read_profile([*twice, *seldom], (), sites=[], rounds=1)
    assert [(one.name, one.ms) for one in found.nodes] == [("loop", 0.02), ("branch", 0.004)]


def test_totals_are_sorted_and_shares_are_of_the_whole() -> None:
    found = read_profile(events(a__A=[*COLD, 10], b__B=[*COLD, 25], c__A=[*COLD, 5]), (), sites=[], rounds=1)
    assert [(one.key, one.count, one.ms, one.share) for one in totals(found, lambda node: node.op)] == [
        ("B", 1, 0.025, pytest.approx(0.625)),
        ("A", 2, pytest.approx(0.015), pytest.approx(0.375)),
    ]


def test_a_real_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[N,3,16,16] x) => (float[N,3,16,16] y) <float s = {0.1}, uint8 z = {128}> {
        codes = QuantizeLinear(x, s, z)  values = DequantizeLinear(codes, s, z)  y = Sin(values)
    }"""
    model = onnx.parser.parse_model(text)
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = "stem.codes"
    onnx.save(model, "file.onnx")
    found = profile(Path("file.onnx"), config={}, sites=["stem.codes"], seed=0, progress=SilentProgress())
    assert [(one.op, one.module, one.data) for one in found.nodes] == [
        ("QuantizeLinear", "stem.codes", "codes"),
        ("DequantizeLinear", "stem.codes", "codes"),
        ("Sin", "stem.codes", "float"),
    ]
    assert found.rounds == 200
    assert [path.name for path in tmp_path.iterdir()] == ["file.onnx"]  # the runtime's own files are gone
