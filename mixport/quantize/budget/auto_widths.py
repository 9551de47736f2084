"""Weight bits under a size budget: what each width of each layer costs in accuracy and in the file, and the
best choice within.

The size of the file is bounded from above: the file with every layer at its fewest bits is measured, and
wider weights add what their storage type takes. What rounding several layers does together is no sum of what
each does alone: of the additive programmes that are solved, and of the uniform widths that fit, the one with
the least measured loss is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, fx

from mixport.model.programs.fx_graph import constant
from mixport.quantize.budget.knapsack import bounded, solve
from mixport.quantize.budget.sensitivity import RoundedWeights, RoundWeight, joint_losses, layer_losses
from mixport.quantize.sites.planner import QuantizationPlan
from mixport.quantize.sites.widths import LayerWidth, LayerWidths
from mixport.records.choices.reconstruction_preset import WIDEST_LEARNED
from mixport.records.choices.scheme import Scheme
from mixport.records.choices.search import LayerChoice, WidthOption, WidthSearch
from mixport.records.errors import InvariantError, SizeBudgetError
from mixport.records.progress import Progress
from mixport.records.targets import Target

EXPONENTS = (0.5, 1.0)
"""Powers of a loss that are summed over layers. Deviations of the output grow with the root of a divergence,
and add up when layers err alike; divergences themselves add up when they err independently.
"""

LENGTH_BYTES = 8
"""Room for the lengths of a wider tensor and of what holds it (protobuf varints), a layer."""
BOUND_BYTES = 32
"""Room for one more scalar initialiser, about 18 bytes, and for its longer name in the node that reads it."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is known of file sizes before widths are chosen.

    Attributes:
        smallest: bytes of the file with every free layer at the fewest bits that the target offers, measured.
        floats: bytes of the float parameters.
        learned: bytes that learned activation steps may add, see `learned_bytes`.
    """

    smallest: int
    floats: int
    learned: int = 0


def learned_bytes(plan: QuantizationPlan) -> int:
    """Room for what learned activation steps add to the file: each absorbed clamp may come to end at a code
    of its own.

    Sites whose codes end alike share one initialiser in the file.
    """
    return BOUND_BYTES * sum(
        site.bounds is not None and site.bounds[1] is not None and site.bits <= WIDEST_LEARNED
        for site in plan.sites
    )


def choose_widths(
    graph: fx.GraphModule,
    widths: LayerWidths,
    batches: Callable[[], Iterator[Tensor]],
    *,
    scheme: Scheme,
    target: Target,
    sizes: Sizes,
    images: int,
    rounding: RoundWeight,
    progress: Progress,
) -> tuple[dict[fx.Node, LayerWidth], WidthSearch]:
    """Choose the bits of every layer whose width is free.

    Args:
        graph: captured float graph, before quantisers are inserted.
        widths: as `scheme_widths` gives them.
        batches: gives the images to measure on, float32 [N, C, H, W], from the start at each call.
        scheme: with a budget.
        target: the widths it supports, and what they take in the file.
        sizes: of the file.
        images: sum of N over the batches.
        rounding: stands for what the quantiser will make of a weight.
        progress: bars.

    Returns:
        widths of all layers, and how they were found.

    Raises:
        SizeBudgetError: no choice fits.
    """
    if scheme.budget is None:
        raise InvariantError(f"scheme {scheme.name} has no size budget")
    budget, offered = scheme.budget.limit(sizes.floats), target.budget_widths()
    free = [node for node, width in widths.items() if not width.fixed]
    file_bytes = {
        node: tuple(target.weight_bytes(_count(graph, node), bits=bits) for bits in offered) for node in free
    }
    bounds = _Bounds(smallest=sizes.smallest + sizes.learned, file_bytes=file_bytes)
    if bounds.smallest > budget:
        activations = f":a{scheme.activation_bits}" if ":a" in scheme.name.lower() else ""
        raise SizeBudgetError(
            f"--scheme {scheme.name} allows a file of {budget} bytes; the smallest one possible for "
            f"target {target.name} takes "
            f"{bounds.smallest} ({bounds.smallest / sizes.floats:.4f} of the float parameters), with "
            f"{offered[-1]}-bit weights "
            f"{bounds.of([len(offered) - 1] * len(free))}",
            hint=f"mixport build --scheme auto:{-(-bounds.smallest // 1000)}KB{activations} ...",
        )
    rounded = RoundedWeights(graph, rounding)
    changes = {node: [rounded.of(node, bits) for bits in offered] for node in free}
    losses = layer_losses(graph, changes, batches(), images=images, progress=progress)
    uniform = [(i,) * len(free) for i in range(len(offered))]
    found = [_solve(losses, bounds, budget=budget, exponent=exponent) for exponent in EXPONENTS]
    edges = {node: rounded.of(node, width.bits) for node, width in widths.items() if width.fixed}
    choices = [*found, *uniform]
    measured = joint_losses(
        graph,
        [{**edges, **{node: changes[node][i] for node, i in zip(free, c, strict=True)}} for c in choices],
        batches(),
    )
    fits = [i for i, choice in enumerate(choices) if bounds.of(choice) <= budget]
    best = min(fits, key=lambda i: (measured[i], i))
    picked = dict(zip(free, choices[best], strict=True))
    *rows, measured = bounded(
        [*(losses[node] for node in free), measured]
    )  # a record has no infinite numbers
    losses = {node: tuple(row) for node, row in zip(free, rows, strict=True)}
    search = WidthSearch(
        budget_bytes=budget,
        smallest_bytes=sizes.smallest,
        bound_bytes=bounds.of(choices[best]),
        images=images,
        exponent=EXPONENTS[best] if best < len(EXPONENTS) else None,
        predicted=sum(losses[node][i] for node, i in picked.items()),
        loss=measured[best],
        uniform={bits: measured[len(found) + i] for i, bits in enumerate(offered)},
        fits=tuple(bits for i, bits in enumerate(offered) if bounds.of(uniform[i]) <= budget),
        layers=tuple(
            LayerChoice(
                name=widths[node].name,
                bits=offered[i],
                options=tuple(
                    WidthOption(bits=bits, loss=loss, file_bytes=size)
                    for bits, loss, size in zip(offered, losses[node], file_bytes[node], strict=True)
                ),
            )
            for node, i in picked.items()
        ),
    )
    chosen = {
        node: replace(
            width,
            bits=offered[picked[node]],
            reason=_reason(offered, losses[node], picked[node], budget=budget),
        )
        if node in picked
        else width
        for node, width in widths.items()
    }
    return chosen, search


@dataclass(frozen=True, kw_only=True)
class _Bounds:
    """Upper bounds of the file's size.

    Attributes:
        smallest: with every free layer at its first option.
        file_bytes: of each free layer's weights, by option.
    """

    smallest: int
    file_bytes: Mapping[fx.Node, tuple[int, ...]]

    def extra(self, node: fx.Node) -> tuple[int, ...]:
        """What each option of a layer adds to the smallest file."""
        first = self.file_bytes[node][0]
        return tuple(size - first + (LENGTH_BYTES if size > first else 0) for size in self.file_bytes[node])

    def of(self, choice: Sequence[int]) -> int:
        """Of the file with these options, one a free layer."""
        return self.smallest + sum(
            self.extra(node)[i] for node, i in zip(self.file_bytes, choice, strict=True)
        )


def levelling_scheme(scheme: Scheme, target: Target) -> Scheme:
    """The scheme for which LayerNorms are levelled: it must be known before widths are chosen, which are
    measured behind it.

    Under a size budget the middle one of the widths that the target supports, 4 bits of 2, 4 and 8. On random
    channels (four seeds, 4- and 8-bit activations) ratios chosen for 4 bits cost a 2-bit layer up to 5 % more
    error than its own; those chosen for 2 bits cost an 8-bit layer up to 3.4 times the error of those for 4.
    """
    if scheme.budget is None:
        return scheme
    offered = target.budget_widths()
    return scheme.at(offered[len(offered) // 2])


def _solve(
    losses: Mapping[fx.Node, tuple[float, ...]], bounds: _Bounds, *, budget: int, exponent: float
) -> tuple[int, ...]:
    rows = [[loss**exponent for loss in losses[node]] for node in bounds.file_bytes]
    picked = solve(rows, [bounds.extra(node) for node in bounds.file_bytes], budget=budget - bounds.smallest)
    if picked is None:
        raise InvariantError(
            f"no widths within {budget} bytes, though a file of {bounds.smallest} is possible"
        )
    return picked


def _count(graph: fx.GraphModule, node: fx.Node) -> int:
    weight = constant(graph, node.args[1])
    return 0 if weight is None else weight.numel()


def _reason(offered: Sequence[int], losses: Sequence[float], picked: int, *, budget: int) -> str:
    costs = ", ".join(f"{bits} bits {loss:.2g}" for bits, loss in zip(offered, losses, strict=True))
    return (
        f"auto: alone it costs {costs} (divergence in nats); {offered[picked]} bits within the budget of "
        f"{budget} bytes"
    )
