"""Where one inference's time goes: ONNX Runtime's own profiler, node by node, with the module that each node
works for.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixport.records.progress import Progress
from mixport.validate.interpreter.graph import load_model
from mixport.validate.run.attribution import modules_of
from mixport.validate.run.fusion_audit import OptimisedNode, read_optimised
from mixport.validate.run.latency import WARMUP_RUNS, image_feed, timing_policy
from mixport.validate.run.session import open_session

INTEGER_COMPUTE = frozenset(
    {
        "QLinearConv",
        "QGemm",
        "QLinearMatMul",
        "ConvInteger",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "QAttention",
    }
)
"""Sums of products of codes: what quantisation is for. All the rest (sums of two tensors, tables, pools,
moves) is not.
"""

_EVENTS = 60_000
"""About how many node events a profile has: each takes a kilobyte of the runtime's file."""
_FEWEST, _MOST = 10, 200
_SUFFIX = "_kernel_time"


@dataclass(frozen=True, kw_only=True)
class NodeTime:
    """One node of the optimised graph.

    Attributes:
        name: of the node; where the runtime left it empty, its operator and number.
        op: operator.
        module: of the float model; None where it cannot be told.
        ms: median over the rounds, milliseconds.
        data: codes, float or other, see `audit.OptimisedNode`.
    """

    name: str
    op: str
    module: str | None
    ms: float
    data: str


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Times of every node; one thread, batch 1.

    Attributes:
        nodes: in the order in which they run.
        rounds: inferences that medians are over.
    """

    nodes: tuple[NodeTime, ...]
    rounds: int

    @property
    def total_ms(self) -> float:
        """Sum of the nodes' medians: without what the session does around them."""
        return sum(node.ms for node in self.nodes)

    @property
    def integer_ms(self) -> float:
        """Of integer compute."""
        return sum(node.ms for node in self.nodes if node.op in INTEGER_COMPUTE)

    @property
    def float_nodes(self) -> tuple[NodeTime, ...]:
        """Operators that the runtime left in float."""
        return tuple(node for node in self.nodes if node.data == "float" and node.op not in INTEGER_COMPUTE)

    @property
    def unattributed_ms(self) -> float:
        """Of nodes whose module cannot be told."""
        return sum(node.ms for node in self.nodes if node.module is None)


@dataclass(frozen=True, kw_only=True)
class Total:
    """Nodes that share a key: how many, their time together, and the share of the whole."""

    key: str
    count: int
    ms: float
    share: float


def totals(
    profile: Profile, key: Callable[[NodeTime], str], *, nodes: Sequence[NodeTime] | None = None
) -> tuple[Total, ...]:
    """Sums over nodes (all of them by default) of equal key, the largest first; shares are of the whole
    profile.
    """
    groups: dict[str, list[float]] = {}
    for node in profile.nodes if nodes is None else nodes:
        groups.setdefault(key(node), []).append(node.ms)
    whole = profile.total_ms or 1.0
    found = [
        Total(key=name, count=len(times), ms=sum(times), share=sum(times) / whole)
        for name, times in groups.items()
    ]
    return tuple(sorted(found, key=lambda total: (-total.ms, total.key)))


def profile(
    path: Path, *, config: Mapping[str, str], sites: Collection[str], seed: int, progress: Progress
) -> Profile:
    """Run a file under the runtime's profiler, in a temporary folder.

    Args:
        path: ONNX file with one float32 image input.
        config: session configuration entries.
        sites: names of the file's sites, which are module paths.
        seed: of the input values.
        progress: shows rounds.

    Raises:
        BadInputError: a file that does not load, or whose input is no float32 image batch.
    """
    with tempfile.TemporaryDirectory(prefix="mixport-profile-") as name:
        folder = Path(name)
        optimised = folder / "optimised.onnx"
        policy = timing_policy(config)
        session = open_session(
            path, policy=policy, optimized_path=optimised, profile_prefix=folder / "profile"
        )
        nodes = read_optimised(load_model(optimised))
        rounds = max(_FEWEST, min(_MOST, _EVENTS // max(1, len(nodes))))
        feed = image_feed(path, session, seed)
        with progress.track("profile", total=rounds, unit="rounds") as advance:
            for done in range(WARMUP_RUNS + rounds):
                session.run(None, feed)
                advance(int(done >= WARMUP_RUNS))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return read_profile(events, nodes, sites=sites, rounds=rounds)


def read_profile(
    events: Sequence[Mapping[str, Any]],
    nodes: Sequence[OptimisedNode],
    *,
    sites: Collection[str],
    rounds: int,
) -> Profile:
    """Times of nodes from the runtime's events of `rounds` runs, behind `WARMUP_RUNS` others that do not
    count.

    The runtime runs nodes one by one in the order of the graph that it wrote (measured: onnxruntime 1.32), so
    that the nth node of the events is the nth of the graph: names alone would not do, since it leaves many
    empty. Where operators differ all the same, as inside branches, a node of a name of its own is found by
    that, and the others have no module.
    """
    durations: dict[tuple[str, str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and str(event["name"]).endswith(_SUFFIX):
            arguments = event["args"]
            key = (
                str(event["name"]).removesuffix(_SUFFIX),
                str(arguments["op_name"]),
                str(arguments["node_index"]),
            )
            durations.setdefault(key, []).append(float(event["dur"]) / 1000.0)
    runs = WARMUP_RUNS + rounds
    places = _places([*durations], nodes)
    modules = modules_of(nodes, sites)
    found: list[NodeTime] = []
    for ((name, op, _), times), place in zip(durations.items(), places, strict=True):
        found.append(
            NodeTime(
                name=name,
                op=op,
                module=None if place is None else modules[place],
                # what a loop runs several times a round, or a branch not in each, counts as often
                ms=statistics.median(times[len(times) * WARMUP_RUNS // runs :]) * (len(times) / runs),
                data="other" if place is None else nodes[place].data,
            )
        )
    return Profile(nodes=tuple(found), rounds=rounds)


def _places(keys: Sequence[tuple[str, str, str]], nodes: Sequence[OptimisedNode]) -> list[int | None]:
    """Index in the graph of each node of the events."""
    if [op for _, op, _ in keys] == [node.op for node in nodes]:
        return [*range(len(nodes))]
    named = {node.name: index for index, node in enumerate(nodes) if node.name}
    return [named.get(name) for name, _, _ in keys]
