"""Every MLP of a model, one after another in graph order: learned, or left with GELU."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, fx

from mixport.model.run import images_at_once
from mixport.quantize.gradients import NotLearnedError
from mixport.quantize.learn.loop.activation_store import Activations, ActivationStore, fill
from mixport.quantize.learn.loop.checkpoints import UnitCheckpoints
from mixport.quantize.learn.loop.float32 import in_float32
from mixport.quantize.learn.mlps.find import Mlp, Values, find_mlps, put_relu, read_values
from mixport.quantize.learn.mlps.mlp_file import FinishedMlp, read_mlp, write_mlp
from mixport.quantize.learn.mlps.prefix import Prefix, cut
from mixport.quantize.learn.mlps.train import gelu_output, relative_error, train
from mixport.records.choices.reconstruction_preset import ReconstructionOptions
from mixport.records.choices.search import MlpRecord
from mixport.records.decision import Decision
from mixport.records.progress import Advance, Progress

LARGEST_ERROR = 0.25
"""Largest relative squared error of an MLP's output with which ReLU is taken.

Rounding everything in an MLP to nearest at 4 bits moves its output by 0.04 to 0.18 (the six of
builtin:cifar10-vit). An MLP that ReLU alone moves further than that has more to lose than narrow codes
without GELU can win back.
"""
QUANTILES = ((4, 0.98), (8, 0.99))
"""Widest activations, and the quantile at which values between the layers are clipped, as published."""
_STEPS, _PUBLISHED_STEPS = 4, 20_000
"""Steps an MLP for each step of a unit, which costs more, as long as there are fewer than published."""


@dataclass(frozen=True, kw_only=True)
class ReconstructedMlps:
    """What happened to the MLPs of a model; those that learned are in the graph already.

    Attributes:
        records: in graph order.
        decisions: one an MLP, or that there is none.
        iters: steps an MLP; 0 where there is none.
    """

    records: tuple[MlpRecord, ...] = ()
    decisions: tuple[Decision, ...] = ()
    iters: int = 0


def reconstruct_mlps(
    graph: fx.GraphModule,
    images: Callable[[slice], Tensor],
    *,
    count: int,
    input_shape: tuple[int, int, int, int],
    dynamic_batch: bool,
    activation_bits: int,
    options: ReconstructionOptions,
    store: ActivationStore,
    checkpoints: UnitCheckpoints,
    progress: Progress,
) -> ReconstructedMlps:
    """Put ReLU in the place of GELU, MLP after MLP, and learn what lies around it.

    Args:
        graph: canonical float graph; altered in place.
        images: float32 [N, 3, H, W], preprocessed, for a slice of the `count` calibration images.
        count: of the images.
        input_shape: [1, 3, H, W].
        dynamic_batch: True where the graph holds for every batch.
        activation_bits: that follow.
        options: steps, seed and device.
        store: where activations are kept, and the device.
        checkpoints: finished MLPs; an interrupted run resumes after them.
        progress: one bar over all steps.
    """
    mlps = find_mlps(graph)
    if not mlps:
        why = (
            "no linear layer, GELU, linear layer follow each other with nothing else that reads what "
            "lies between"
        )
        return ReconstructedMlps(decisions=(Decision(where="model", what="no MLP to reconstruct", why=why),))
    batch = images_at_once(input_shape) if dynamic_batch else 1
    learner = _Learner(
        images=images,
        count=count,
        batch=batch,
        quantile=_quantile(activation_bits),
        options=options,
        store=store,
    )
    done: list[FinishedMlp] = []
    with (
        in_float32(store.device),
        progress.track("MLPs", total=learner.steps * len(mlps), unit="steps") as advance,
    ):
        originals = [
            _Original(mlp=mlp, values=read_values(graph, mlp), inputs=cut(graph, mlp.input)) for mlp in mlps
        ]
        for index, original in enumerate(originals):
            made = _finished(learner, index, graph, original, checkpoints=checkpoints, advance=advance)
            if made.values is not None:
                put_relu(graph, original.mlp, made.values)
            done.append(made)
    records, decisions = zip(*((one.record, one.decision) for one in done), strict=True)
    return ReconstructedMlps(records=records, decisions=decisions, iters=learner.steps)


def mlp_steps(iters: int) -> int:
    """Steps an MLP, where a unit has `iters`."""
    return max(iters, min(_STEPS * iters, _PUBLISHED_STEPS))


def _quantile(bits: int) -> float:
    return next(quantile for widest, quantile in QUANTILES if bits <= widest)


@dataclass(frozen=True, kw_only=True)
class _Original:
    """An MLP, and what it was before any MLP was changed: two may share a layer.

    Attributes:
        mlp: nodes of the graph that is changed.
        values: its constants.
        inputs: gives what it read.
    """

    mlp: Mlp
    values: Values
    inputs: fx.GraphModule


@dataclass(frozen=True, kw_only=True)
class _Learner:
    """Learns one MLP at a time.

    Attributes:
        images: see `reconstruct_mlps`.
        count: of the images.
        batch: images at once while nothing is learned.
        quantile: see `train.train`.
        options: steps and seed.
        store: where activations are kept.
    """

    images: Callable[[slice], Tensor]
    count: int
    batch: int
    quantile: float
    options: ReconstructionOptions
    store: ActivationStore

    @property
    def steps(self) -> int:
        """Of one MLP."""
        return mlp_steps(self.options.iters)

    def learn(
        self, index: int, graph: fx.GraphModule, original: _Original, *, advance: Callable[[int, float], None]
    ) -> FinishedMlp:
        """Learn an MLP; the graph is not changed.

        Args:
            index: its own number, part of the seed.
            graph: as it is now, with ReLU in MLPs before this one.
            original: the MLP, and what it was.
            advance: is told the number of steps just done, and the latest loss.
        """
        mlp, device = original.mlp, self.store.device
        first = {name: value.to(device) for name, value in original.values.items()}
        values = {name: value.to(device) for name, value in read_values(graph, mlp).items()}
        targets = self._rows(original.inputs, lambda x: gelu_output(mlp, first, x))
        inputs = self._rows(cut(graph, mlp.input), lambda x: x)
        before = relative_error(mlp, values, inputs, targets, batch=self.batch)
        learned, after, problem = None, math.nan, None
        try:
            learned = train(
                mlp,
                values,
                inputs,
                targets,
                quantile=self.quantile,
                batch=self.options.preset.batch,
                steps=self.steps,
                seed=(self.options.seed * 7919 + index) % 2**63,  # torch takes no larger one
                advance=advance,
            )
            after = relative_error(mlp, learned, inputs, targets, batch=self.batch)
            if not after <= LARGEST_ERROR:
                raise NotLearnedError(
                    f"relative squared error {after:.3g} of its output, above {LARGEST_ERROR}"
                )
        except NotLearnedError as found:
            learned, problem = None, found
        record = MlpRecord(
            name=mlp.name,
            layers=() if learned is None else mlp.layers,
            error_before=before if math.isfinite(before) else None,
            error_after=after if math.isfinite(after) else None,
        )
        if problem is not None:
            decision = Decision(
                where=mlp.name, what="keeps GELU", why=f"ReLU could not be made to fit: {problem}"
            )
        else:
            why = (
                f"relative squared error of its output {before:.2e} with ReLU put in, {after:.2e} after "
                f"{self.steps} steps"
            )
            decision = Decision(
                where=mlp.name, what=f"ReLU in the place of GELU, learned: {', '.join(mlp.layers)}", why=why
            )
        return FinishedMlp(values=learned, record=record, decision=decision)

    def _rows(self, part_of_graph: fx.GraphModule, then: Callable[[Tensor], Tensor]) -> Activations:
        """What a part of a graph gives, and then `then`, [1, rows, C] an image.

        Each row goes through the MLP alone, so that it does not matter which image of a batch a row is from.
        """
        prefix = Prefix(part_of_graph, device=self.store.device)

        def rows(part: slice) -> Tensor:
            value = prefix(self.images(part))
            return then(value.reshape(part.stop - part.start, -1, value.shape[-1]))

        return fill(self.count, self.batch, rows, store=self.store)


def _finished(
    learner: _Learner,
    index: int,
    graph: fx.GraphModule,
    original: _Original,
    *,
    checkpoints: UnitCheckpoints,
    advance: Advance,
) -> FinishedMlp:
    """One MLP, taken from its checkpoint or learned and kept."""
    mlp, place = original.mlp, f"mlp-{index}"
    found = checkpoints.find(place)
    if found is not None:
        advance(learner.steps, f"{mlp.name}, from the cache")
        return read_mlp(found)
    done = 0

    def report(steps: int, loss: float) -> None:
        nonlocal done
        done += steps
        advance(steps, f"{mlp.name}, loss {loss:.3g}")

    learned = learner.learn(index, graph, original, advance=report)
    advance(learner.steps - done)
    with checkpoints.keep(place) as folder:
        write_mlp(folder, learned)
    return learned
