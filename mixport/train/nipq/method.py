"""NIPQ from end to end: a noise phase that finds widths, their freezing, and a fine-tune of what ships."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from mixport.model.float_model import FloatModel
from mixport.quantize.algorithms.context import ChoiceContext
from mixport.quantize.algorithms.nearest import choose_nearest
from mixport.quantize.algorithms.reconstruction import reconstruct_from
from mixport.quantize.budget.auto_widths import BOUND_BYTES, LENGTH_BYTES, learned_bytes
from mixport.quantize.calibration_batches import CalibrationBatches
from mixport.quantize.emit.emit import emit
from mixport.quantize.learn.loop.checkpoints import UnitCheckpoints
from mixport.quantize.learn.session import LearningSession
from mixport.quantize.prepare import prepare
from mixport.quantize.prepared import Assignment, Prepared
from mixport.records.calibration_set import CalibrationSet
from mixport.records.choices.reconstruction_preset import ReconstructionOptions
from mixport.records.choices.scheme import EdgeConvention, Scheme
from mixport.records.choices.width_table import WidthTable
from mixport.records.decision import Decision
from mixport.records.errors import InvariantError, TargetError
from mixport.records.progress import Progress
from mixport.records.quantized_model import QuantizedModel
from mixport.records.targets import Target
from mixport.train.loop.loop import Phase
from mixport.train.loop.trainee import Trainee
from mixport.train.network.block_distance import BlockDistance
from mixport.train.network.finish import finish
from mixport.train.network.graph_weights import put_weights
from mixport.train.network.quantised import QuantisedNetwork
from mixport.train.nipq.budget import Budget, Costs
from mixport.train.nipq.costs import costs_of
from mixport.train.nipq.freeze import FrozenWidths, freeze
from mixport.train.nipq.intervals import learned_params
from mixport.train.nipq.network import NoisyNetwork, free_sites, tensor_names
from mixport.train.nipq.noise import NoiseKind
from mixport.train.nipq.trainees import FinetuneTrainee, NoiseTrainee, describe_widths

_WIDEST = 8.0
_EXTRA_BITS = 2
"""Widths start so far above the budget, at 8 bits at most: the paper starts at 8 and has 40 epochs to come
down."""


@dataclass(frozen=True, kw_only=True)
class NipqSettings:
    """What NIPQ learns, and for how long.

    Attributes:
        budget: of the widths.
        noise: kind.
        learn_widths: False keeps every width at the budget's, for comparison; it has to be wWaA then.
        noise_epochs: with noise.
        finetune_epochs: with real quantisers.
        pull: weight of the budget in the loss.
        block_weight: of the distance of blocks from the float model's in the loss; 0 does not look at them.
        edge_bits: of the first and the last layer.
        edge_convention: what these bits hold for.
        reconstruction: how MODEL's own weights are reconstructed once their widths are fixed: before the
            noise phase where the budget leaves no choice, behind it elsewhere; None does not.
    """

    budget: Budget
    noise: NoiseKind = "histogram"
    learn_widths: bool = True
    noise_epochs: int
    finetune_epochs: int
    pull: float = 1.0
    block_weight: float = 0.0
    edge_bits: int = 8
    edge_convention: EdgeConvention
    reconstruction: ReconstructionOptions | None = None


@dataclass(kw_only=True)
class Nipq:
    """The method for one model and one target; makes the phases, and the Assignment from the last one.

    Attributes:
        model: float model.
        target: what the widths are for.
        calibration: images that statistics are taken of.
        settings: see NipqSettings.
        workdir: existing folder.
        checkpoints: of reconstructed units.
        progress: bars.
        batch: images a step.
        steps: of an epoch.
        fixed_bytes: of the file without the weights whose width is free; for budgets of bytes.
        decisions: what was held or lowered; grows.
    """

    model: FloatModel
    target: Target
    calibration: CalibrationSet
    settings: NipqSettings
    workdir: Path
    checkpoints: UnitCheckpoints
    progress: Progress
    batch: int
    steps: int
    fixed_bytes: int = 0
    decisions: list[Decision] = field(default_factory=list[Decision])
    shipped: Prepared | None = None

    def phases(self) -> list[Phase]:
        """Noise, then fine-tune; a phase without epochs still hands over."""
        settings = self.settings
        return [
            Phase(name="noise", epochs=settings.noise_epochs, make=self._noise),
            Phase(name="fine-tune", epochs=settings.finetune_epochs, make=self._finetune),
        ]

    def assignment(self, trainee: Trainee) -> Assignment:
        """Integers of the fine-tuned network."""
        if not isinstance(trainee, FinetuneTrainee) or self.shipped is None:
            raise InvariantError("the last phase is not the fine-tune")
        made = finish(trainee.network, self.shipped)
        self.decisions.extend(made.decisions)
        return made

    @property
    def device(self) -> torch.device:
        """Where the networks run."""
        options = self.settings.reconstruction
        return torch.device("cpu" if options is None else options.device)

    def scheme(self) -> Scheme:
        """Widths that the graph is prepared for before any is learned: compute inputs have sites of their
        own, apart from edges and 8-bit carriers.
        """
        budget, settings = self.settings.budget, self.settings
        activations = [bits for bits in self.target.activations.bits if bits not in (settings.edge_bits, 8)]
        if not activations:
            raise TargetError(
                f"target {self.target.name}: activation bits "
                f"{', '.join(map(str, self.target.activations.bits))}, nothing for --method nipq to choose",
                hint="a target with more widths: mixport targets list",
            )
        start = min(_WIDEST, (budget.weight_bits or 4.0) + (_EXTRA_BITS if self._learns()[0] else 0))
        return Scheme(
            weight_bits=min(self.weight_choices(), key=lambda bits: (abs(bits - start), bits)),
            activation_bits=min(activations, key=lambda bits: (abs(bits - 4), bits)),
            edge_bits=settings.edge_bits,
            edge_convention=settings.edge_convention,
            spelling=f"nipq:{budget.text}",
        )

    def weight_choices(self) -> Sequence[int]:
        """Weight bits that may be chosen: under a budget of bytes the widest of each storage type."""
        if self.settings.budget.size_bytes is not None:
            return self.target.budget_widths()
        return sorted(self.target.held_widths)

    def smallest(self) -> QuantizedModel:
        """Every free layer at the fewest bits, rounded to nearest: shows how much of a file is no weights."""
        narrow = replace(self.scheme(), weight_bits=self.weight_choices()[0])
        prepared = self.prepared(None, scheme=narrow)
        return emit(prepared, self._nearest(prepared), self._calibration, workdir=self.workdir)

    def room(self, smallest_bytes: int) -> int:
        """Bytes of the file without the weights whose width is free, from above.

        Args:
            smallest_bytes: of the file that `smallest` gives.
        """
        prepared = self.prepared(None)
        costs, fewest = costs_of(prepared), self.weight_choices()[0]
        spare = LENGTH_BYTES * len(prepared.widths) + BOUND_BYTES * len(costs.activations)
        return smallest_bytes + spare + learned_bytes(prepared.plan) - sum(costs.weights) * fewest // 8

    def prepared(self, table: WidthTable | None, *, scheme: Scheme | None = None) -> Prepared:
        """The graph, as a build with `--trained` prepares it too."""
        return prepare(
            self.model,
            self.calibration,
            self.target,
            scheme=scheme or self.scheme(),
            learned=True,
            table=table,
            level=False,
            progress=self.progress,
        )

    def _learns(self) -> tuple[bool, bool]:
        """Whether widths of weights and of activations move: not where an average allows only the fewest."""
        budget, (weights, activations) = self.settings.budget, self._choices()
        learns = self.settings.learn_widths and self.settings.noise_epochs > 0
        return (
            learns and (budget.weight_bits is None or budget.weight_bits > weights[0]),
            learns and (budget.activation_bits is None or budget.activation_bits > activations[0]),
        )

    def _choices(self) -> tuple[Sequence[int], Sequence[int]]:
        return self.weight_choices(), sorted(self.target.activations.bits)

    def _noise(self, previous: Trainee | None) -> Trainee:
        prepared, settings = self.prepared(None), self.settings
        scheme, budget = prepared.scheme, settings.budget
        start = self._nearest(prepared)
        reconstructs = self._reconstructs and not self._learns()[0]
        if reconstructs:
            start = self._reconstructed(start, prepared)
        first = budget.activation_bits or _WIDEST
        if self._learns()[1]:
            first = min(_WIDEST, first + _EXTRA_BITS)
        free = free_sites(prepared)
        network = NoisyNetwork(
            prepared,
            start.params,
            start.integers,
            activation_bits=[first] * len(free),
            weight_bits=[float(scheme.weight_bits)] * len(prepared.widths),
            allowed=self._choices(),
            noise=settings.noise,
            learn=self._learns(),
            device=self.device,
        )
        network.centre(self._batches(prepared), corrected=not reconstructs)
        costs = costs_of(prepared, fixed_bytes=self.fixed_bytes)
        self._check_reachable(costs, network)
        return NoiseTrainee(
            network,
            budget=budget,
            costs=costs,
            pull=settings.pull,
            batch=self.batch,
            steps=self.steps * settings.noise_epochs,
            blocks=self._blocks(),
        )

    def _finetune(self, previous: Trainee | None) -> Trainee:
        if not isinstance(previous, NoiseTrainee):
            raise InvariantError("the fine-tune follows the noise phase")
        network = previous.network
        frozen = freeze(
            self.settings.budget,
            previous.costs,
            weights=network.widths.values(),
            activations=network.site_widths.values(),
            allowed=self._choices(),
        )
        self._tell(network, frozen)
        prepared = self.prepared(self._table(network, frozen))
        if self._reconstructs and self._learns()[0]:
            start = self._reconstructed(self._nearest(prepared), prepared)
        else:
            start = self._handed_over(network, frozen, prepared)
        self.shipped = prepared
        made = QuantisedNetwork(prepared, start.params, start.integers, device=self.device)
        made.centre(self._batches(prepared), corrected=False)
        widths = torch.tensor([float(bits) for bits in frozen.weights])
        sites = torch.tensor([float(bits) for bits in frozen.activations])
        return FinetuneTrainee(
            made, figures=describe_widths(previous.costs, widths, sites), blocks=self._blocks()
        )

    def _blocks(self) -> BlockDistance | None:
        """The float model's blocks to compare with, on a graph of their own."""
        weight = self.settings.block_weight
        if weight == 0.0:
            return None
        return BlockDistance(self.prepared(None), weight=weight, device=self.device)

    def _handed_over(self, network: NoisyNetwork, frozen: FrozenWidths, prepared: Prepared) -> Assignment:
        """Weights, bounds and intervals of the noise phase at whole widths; carriers are calibrated with
        these weights.
        """
        integers = dict(zip(prepared.widths, network.integers(frozen.weights).values(), strict=True))
        values: dict[str, Tensor] = {}
        for node, width in prepared.widths.items():
            one = integers[node]
            wide = one.scales.reshape(-1, *[1] * (one.codes.ndim - 1))
            values[f"weight/{width.name}"] = torch.as_tensor(one.codes * wide)
            values[f"bias/{width.name}"] = torch.as_tensor([] if one.bias is None else one.bias)
        put_weights(prepared, values)
        calibrated = self._nearest(prepared).params
        floats = network.layers.give()
        put_weights(prepared, {**values, **{k: v for k, v in floats.items() if k.startswith("weight/")}})
        params = learned_params(network, prepared, calibrated)
        return Assignment(params=params, widths=prepared.widths, integers=integers)

    def _nearest(self, prepared: Prepared) -> Assignment:
        context = ChoiceContext(batches=self._calibration, learner=None, progress=self.progress)
        return choose_nearest(prepared, context)

    @property
    def _calibration(self) -> CalibrationBatches:
        return CalibrationBatches(model=self.model, calibration=self.calibration)

    @property
    def _reconstructs(self) -> bool:
        options = self.settings.reconstruction
        return options is not None and options.iters > 0

    def _batches(self, prepared: Prepared) -> Iterator[Tensor]:
        batches = self._calibration
        parts = batches.of(batches.all(), dynamic_batch=prepared.captured.dynamic_batch)
        return (part.to(self.device) for part in parts)

    def _check_reachable(self, costs: Costs, network: NoisyNetwork) -> None:
        """Raise SizeBudgetError before hours of training where the fewest bits are too many."""
        weights, activations = self._choices()
        freeze(
            self.settings.budget,
            costs,
            weights=[
                float(weights[0]) if count else bits
                for bits, count in zip(network.widths.values(), costs.weights, strict=True)
            ],
            activations=[float(activations[0])] * len(costs.activations),
            allowed=self._choices(),
        )

    def _tell(self, network: NoisyNetwork, frozen: FrozenWidths) -> None:
        if frozen.lowered:
            self.decisions.append(
                Decision(
                    where="widths",
                    what=f"{frozen.lowered} widths lowered below the nearest one",
                    why=f"--budget {self.settings.budget.text}",
                )
            )
        held = {
            **dict(zip(network.layers.names, network.widths.steps_held(), strict=True)),
            **dict(zip(network.free_sites, network.site_widths.steps_held(), strict=True)),
        }
        self.decisions.extend(
            Decision(where=name, what="width held at the end of its range", why=f"in {steps} steps")
            for name, steps in held.items()
            if steps
        )
        if int(network.held):
            self.decisions.append(
                Decision(
                    where="intervals",
                    what="held at a sixteenth or sixteen times their first length",
                    why=f"in {int(network.held)} steps one would have collapsed or run away",
                )
            )

    def _table(self, network: NoisyNetwork, frozen: FrozenWidths) -> WidthTable:
        layers = zip(network.layers.widths, frozen.weights, strict=True)
        tensors = tensor_names(network.prepared)
        sites = zip(network.free_sites, frozen.activations, strict=True)
        return WidthTable(
            weights={width.name: bits for width, bits in layers if not width.fixed},
            activations={tensors[name]: bits for name, bits in sites},
        )

    def _reconstructed(self, start: Assignment, prepared: Prepared) -> Assignment:
        if self.settings.reconstruction is None:
            return start
        session = LearningSession(
            model=self.model,
            calibration=self.calibration,
            options=self.settings.reconstruction,
            workdir=self.workdir,
            checkpoints=self.checkpoints,
            progress=self.progress,
        )
        context = ChoiceContext(batches=self._calibration, learner=session, progress=self.progress)
        made = reconstruct_from(start, prepared, context)
        self.decisions.extend(made.decisions)
        return made
