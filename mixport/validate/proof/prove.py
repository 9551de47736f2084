"""All proofs of a file, as plain data for the manifest, the report and `mixport inspect`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mixport.records.graph_facts import FileFacts, LayerFacts, NodeFacts
from mixport.validate.proof.adds import add_fault
from mixport.validate.proof.bounds import FLOAT32_LIMIT, INT32_LIMIT, sum_bound
from mixport.validate.proof.pairs import INT16_LIMIT, pair_bound
from mixport.validate.proof.portability import LayerProof, portability_of
from mixport.validate.proof.requantise import ENUMERATED, prove_requantisation


@dataclass(frozen=True, kw_only=True)
class Violation:
    """A bound that the file breaks.

    Attributes:
        node: ONNX node.
        site: what it gives.
        bound: which one.
        found: what was found.
        repair: what to change.
    """

    node: str
    site: str
    bound: str
    found: str
    repair: str


def prove(facts: FileFacts, /, *, enumerate_up_to: int = ENUMERATED) -> Mapping[str, Any]:
    """Prove everything that can be proved of a file without running it.

    Args:
        facts: of the file.
        enumerate_up_to: layers with at most so many sums are also requantised sum by sum.

    Returns:
        plain data: a summary of each bound; `violations`; `sites`, a record for each layer; `nodes`, a
        portability class and its reason for each node.

    Raises:
        ValueError: impossible code ranges.
    """
    limit = INT16_LIMIT if facts.pair_limit is None else facts.pair_limit
    proofs = {
        layer.site: LayerProof(
            sums=sum_bound(layer),
            pairs=pair_bound(layer, limit=limit),
            requantisation=prove_requantisation(layer, enumerate_up_to=enumerate_up_to),
        )
        for layer in facts.layers
    }
    adds = {node.site: add_fault(node) for node in facts.nodes if node.form == "add"}
    violations = [*_of_layers(facts, proofs), *_of_nodes(facts.nodes, adds if facts.portable else {})]
    nodes = [_node_record(node, proofs, adds) for node in facts.nodes]
    return {
        **_summaries(proofs, limit=limit),
        "add_ratios": {
            "holds": not any(adds.values()),
            "sites": len(adds),
            "exceptions": [site for site, fault in adds.items() if fault],
        },
        "portability": dict(Counter(record["portability"] for record in nodes)),
        "violations": [asdict(violation) for violation in violations],
        "sites": [_site_record(layer, proofs[layer.site]) for layer in facts.layers],
        "nodes": nodes,
    }


def _summaries(proofs: Mapping[str, LayerProof], *, limit: int) -> dict[str, Any]:
    def exceptions(holds: Mapping[str, bool]) -> dict[str, Any]:
        failing = [site for site, good in holds.items() if not good]
        return {"holds": not failing, "sites": len(holds), "exceptions": failing}

    worst = max(proofs, key=lambda site: proofs[site].sums.magnitude, default=None)
    requantised = {site: one.requantisation for site, one in proofs.items() if one.requantisation is not None}
    return {
        "int32_accumulators": {
            **exceptions({site: one.sums.fits_int32 for site, one in proofs.items()}),
            "largest": 0 if worst is None else proofs[worst].sums.magnitude,
            "largest_site": worst,
            "limit": INT32_LIMIT,
        },
        "float32_exact_accumulators": {
            **exceptions({site: one.sums.exact_in_float32 for site, one in proofs.items()}),
            "limit": FLOAT32_LIMIT,
        },
        "int16_pairs": {
            **exceptions({site: not one.pairs.broken for site, one in proofs.items()}),
            "limit": limit,
        },
        "requantisation": {
            **exceptions({site: one.exact for site, one in requantised.items()}),
            "sums": sum(one.sums for one in requantised.values()),
            "sums_enumerated": sum(one.sums for one in requantised.values() if one.method == "enumerated"),
        },
    }


def _of_layers(facts: FileFacts, proofs: Mapping[str, LayerProof]) -> list[Violation]:
    found: list[Violation] = []
    for layer in facts.layers:
        sums, pairs = proofs[layer.site].sums, proofs[layer.site].pairs
        if not sums.fits_int32:
            reached = f"sums reach {max(sums.magnitude, sums.stored)}, allowed {INT32_LIMIT}"
            found.append(
                _violation(layer, "int32 accumulator", reached, "narrower weights or inputs for this layer")
            )
        if pairs.broken and facts.pair_limit is not None:
            what = (
                f"{pairs.broken} pairs of products leave [{-facts.pair_limit - 1}, {facts.pair_limit}], "
                f"first {pairs.first}"
            )
            found.append(
                _violation(
                    layer,
                    "pair saturation",
                    what,
                    "build again: quantisation repairs such pairs; or 7-bit weights",
                )
            )
    return found


def _of_nodes(nodes: Sequence[NodeFacts], adds: Mapping[str, str]) -> list[Violation]:
    found: list[Violation] = []
    for node in nodes:
        if adds.get(node.site) and node.form == "add":
            found.append(
                _violation(
                    node,
                    "add ratio",
                    adds[node.site],
                    "input scales that are 1, 2, 3 ... times the output scale",
                )
            )
        if node.wrong:
            found.append(
                _violation(node, "scales", node.wrong, "build again: the file's scales contradict each other")
            )
    return found


def _violation(where: NodeFacts | LayerFacts, bound: str, found: str, repair: str) -> Violation:
    return Violation(node=where.node, site=where.site, bound=bound, found=found, repair=repair)


def _site_record(layer: LayerFacts, proof: LayerProof) -> dict[str, Any]:
    requantisation = proof.requantisation
    return {
        "site": layer.site,
        "node": layer.node,
        "op": layer.op,
        "products": layer.products,
        **asdict(proof.sums),
        "fits_int32": proof.sums.fits_int32,
        "exact_in_float32": proof.sums.exact_in_float32,
        "pair": max(proof.pairs.largest, -proof.pairs.smallest),
        "pairs_broken": proof.pairs.broken,
        "pair_safe": not proof.pairs.broken,
        "requantisation": None
        if requantisation is None
        else {**asdict(requantisation), "exact": requantisation.exact},
    }


def _node_record(
    node: NodeFacts, proofs: Mapping[str, LayerProof], adds: Mapping[str, str]
) -> dict[str, Any]:
    portability, why = portability_of(
        node, layer=proofs.get(node.site), add=adds.get(node.site, "") if node.form == "add" else ""
    )
    wrong = f"; {node.wrong}" if node.wrong else ""
    return {
        "node": node.node,
        "op": node.op,
        "site": node.site,
        "portability": portability,
        "why": f"{why}{wrong}",
    }
