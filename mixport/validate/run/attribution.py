"""Which module of the float model a node of the optimised graph works for.

The runtime fuses, renames and inserts nodes: fused ones keep the layer in front of the slash
(`blocks.1.conv/Conv_token_15`), but what moves codes has a generated name or none. Such a node is put to the
module that reads what it gives, or else to the one that gives what it reads.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mixport.validate.run.fusion_audit import OptimisedNode


@dataclass(frozen=True, kw_only=True)
class _Paths:
    """Sites by name, and every module path that a site lies in."""

    sites: frozenset[str]
    known: frozenset[str]


def modules_of(nodes: Sequence[OptimisedNode], sites: Collection[str]) -> tuple[str | None, ...]:
    """A module path for each node, None where nothing connects it to one.

    1. By its own name, where what stands in front of a slash is a site, or a module that holds one.
    2. By the site whose codes it gives.
    3. By its readers: their module, or the innermost one that holds all of them. Readers that have no module
      in common say nothing.
    4. By what gives its inputs, in the same way.

    Args:
        nodes: of the optimised graph, in the order in which they run: readers come after what they read.
        sites: names of the sites, which are module paths (`blocks.0.mlp.fc1`), or paths with what `forward`
            does there (`blocks.0.add_2`).
    """
    paths = _Paths(
        sites=frozenset(sites), known=frozenset(path for site in sites for path in _ancestry(site))
    )
    modules = [_own_module(node, paths) for node in nodes]
    readers: dict[str, list[int]] = {}
    givers: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in node.inputs:
            readers.setdefault(name, []).append(index)
        givers.update(dict.fromkeys(node.outputs, index))
    for index in reversed(range(len(nodes))):
        if modules[index] is None:
            modules[index] = _shared(
                [modules[reader] for name in nodes[index].outputs for reader in readers.get(name, ())]
            )
    for index, node in enumerate(nodes):
        if modules[index] is None:
            modules[index] = _shared([modules[givers[name]] for name in node.inputs if name in givers])
    return tuple(modules)


def merged(module: str) -> str:
    """The path with a star for each number, so that repeated blocks share a row: `blocks.*.mlp.fc1`."""
    return ".".join("*" if part.isdigit() else part for part in module.split("."))


def _own_module(node: OptimisedNode, paths: _Paths) -> str | None:
    layer, slash, _ = node.name.rpartition("/")
    if slash and layer in paths.known:
        return layer
    return next((name for name in node.outputs if name in paths.sites), None)


def _shared(found: Sequence[str | None]) -> str | None:
    """The innermost path that holds all of these; None without one."""
    named = [path.split(".") for path in found if path is not None]
    if not named:
        return None
    common = named[0]
    for parts in named[1:]:
        length = next(
            (i for i, (a, b) in enumerate(zip(common, parts, strict=False)) if a != b),
            min(len(common), len(parts)),
        )
        common = common[:length]
    return ".".join(common) or None


def _ancestry(site: str) -> list[str]:
    parts = site.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
