"""Which carriers share a scale: tensors that meet in an add or lie side by side in a concat, joined
transitively.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import fx

from mixport.model.programs.fx_graph import tensor_arg, tensor_list_arg
from mixport.quantize.graph.roles import Kind
from mixport.quantize.sites.code_flow import CodeFlow
from mixport.quantize.sites.site_plan import ScaleGroup, SitePlan
from mixport.records.choices.scheme import Role


def scale_groups(flow: CodeFlow, sites: Iterable[SitePlan], *, portable: bool) -> tuple[ScaleGroup, ...]:
    """Groups in the order in which the graph first meets them; a residual stream is float between its codes
    and ties nothing.

    Adds tie their operands only where sums have to be portable.
    """
    carriers = _carrier_names(flow, sites)
    parent: dict[str, str] = {}
    sums: set[str] = set()
    concats: list[tuple[str, ...]] = []

    def find(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            name = parent[name]
        return name

    for node in flow.nodes:
        if node not in flow.integer or node in flow.streams:
            continue
        if flow.kinds[node] is Kind.ADD and portable:
            result = carriers(flow.carrier_tensor(node))
            sums.update(result)
            members = [*result, *carriers(tensor_arg(node, 0)), *carriers(tensor_arg(node, 1))]
        elif flow.kinds[node] is Kind.CONCAT:
            members = [name for operand in tensor_list_arg(node, 0) for name in carriers(operand)]
            concats.append(tuple(dict.fromkeys(members)))
        else:
            continue
        for name in members:
            parent[find(name)] = find(members[0])
    joined: dict[str, list[str]] = {}
    for name in parent:
        joined.setdefault(find(name), []).append(name)
    in_concat = {name for names in concats for name in names}
    return tuple(
        ScaleGroup(
            members=tuple(names),
            leaves=frozenset(name for name in names if name not in sums and name not in in_concat),
            equal_zero_point=_merge([names for names in concats if names and find(names[0]) == root]),
        )
        for root, names in joined.items()
    )


def _carrier_names(flow: CodeFlow, sites: Iterable[SitePlan]) -> Callable[[fx.Node], list[str]]:
    """A function from an operand to the sites that carry it: its carrier, else its first site; several behind
    a concat.
    """
    first: dict[fx.Node, SitePlan] = {}
    by_role: dict[tuple[fx.Node, Role], SitePlan] = {}
    for site in sites:
        by_role[site.tensor, site.role] = site
        if site.base is None:
            first[site.tensor] = site

    def carriers(operand: fx.Node) -> list[str]:
        birth = flow.birth(operand)
        if flow.kinds[birth] is Kind.CONCAT:
            return [name for source in tensor_list_arg(birth, 0) for name in carriers(source)]
        site = by_role.get((birth, "carrier")) or first.get(birth)
        return [site.name] if site is not None else []

    return carriers


def _merge(sets: list[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    """Union of overlapping sets."""
    merged: list[dict[str, None]] = []
    for names in sets:
        current = dict.fromkeys(names)
        rest: list[dict[str, None]] = []
        for other in merged:
            if other.keys() & current.keys():
                current = {**other, **current}
            else:
                rest.append(other)
        merged = [*rest, current]
    return tuple(tuple(names) for names in merged)
