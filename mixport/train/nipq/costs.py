"""What a bit costs at each layer and each free site of a prepared graph."""

from __future__ import annotations

import math

from torch import fx

from mixport.model.programs.fx_graph import shape_of, tensor_arg
from mixport.quantize.graph.roles import Kind
from mixport.quantize.integers.nearest import operand_site, read_site
from mixport.quantize.prepared import Prepared
from mixport.train.nipq.budget import Costs, Product
from mixport.train.nipq.network import free_sites


def costs_of(prepared: Prepared, *, fixed_bytes: int = 0) -> Costs:
    """Costs of all layers and free sites, for one image.

    Args:
        prepared: graph, sites and widths.
        fixed_bytes: of the file without the weights whose width is free.
    """
    batch = prepared.captured.example_batch
    free = free_sites(prepared)
    places = {name: number for number, name in enumerate(free)}
    sites = {site.name: site for site in prepared.plan.sites}
    weights, macs, reads, bits = list[int](), list[int](), list[int](), list[int]()
    for node, width in prepared.widths.items():
        shape = shape_of(tensor_arg(node, 1))
        weights.append(0 if width.fixed else math.prod(shape))
        macs.append(math.prod(shape_of(node)) // batch * math.prod(shape[1:]))
        site = read_site(prepared.plan, node)
        reads.append(places.get(site.name, -1))
        bits.append(site.bits)
    activations = [math.prod(shape_of(sites[name].tensor)) // batch for name in free]
    return Costs(
        weights=tuple(weights),
        activations=tuple(activations),
        macs=tuple(macs),
        reads=tuple(reads),
        read_bits=tuple(bits),
        products=tuple(
            _product(prepared, node, places, batch=batch)
            for node, kind in prepared.plan.kinds.items()
            if kind is Kind.PRODUCT
        ),
        fixed_bytes=fixed_bytes,
    )


def _product(prepared: Prepared, node: fx.Node, places: dict[str, int], *, batch: int) -> Product:
    """Cost of a product [..., M, K] x [..., K, N] of two activations."""
    left, right = (operand_site(prepared.plan, node, tensor_arg(node, place)) for place in (0, 1))
    depth = shape_of(tensor_arg(node, 0))[-1]
    return Product(
        macs=math.prod(shape_of(node)) // batch * depth,
        reads=(places.get(left.name, -1), places.get(right.name, -1)),
        read_bits=(left.bits, right.bits),
    )
