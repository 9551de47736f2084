"""A float model that is fine-tuned, plainly or towards weights that survive many widths."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mixport.train.loop.trainee import Rates
from mixport.train.robust.kure import kurtosis_loss
from mixport.train.robust.layers import regular_layers
from mixport.train.robust.satnl import bound_weights
from mixport.train.robust.symreg import Pairing, SortedWeights, symmetry_loss


@dataclass(frozen=True, kw_only=True)
class RobustSettings:
    """What weights are pulled towards; all off is a plain fine-tune.

    Attributes:
        symmetry: weight of SymReg, 0 for none.
        pairing: of SymReg.
        bound: of SatNL, in standard deviations of a layer's first weights; None for no bound.
        kurtosis: weight of KURE, 0 for none.
        depthwise: regularise depthwise convolutions too.
        refresh: steps between two sorts of SymReg.
    """

    symmetry: float = 0.0
    pairing: Pairing = "1:1"
    bound: float | None = None
    kurtosis: float = 0.0
    depthwise: bool = False
    refresh: int = 8


class RobustTrainee:
    """A copy of a float model in training mode; a `Trainee`.

    Args:
        module: in eval mode; stays as it is.
        settings: of the regularisers.
        device: where it trains.
        amp: training passes are in bfloat16; parameters, and what is looked at, stay float32.
    """

    def __init__(
        self, module: nn.Module, settings: RobustSettings, *, device: torch.device, amp: bool = False
    ) -> None:
        self._plain, self._amp = module, amp
        made = copy.deepcopy(module).requires_grad_(True).to(device)
        self.bounds = {} if settings.bound is None else bound_weights(made, deviations=settings.bound)
        self._module = made.to(memory_format=torch.channels_last)
        self._settings = settings
        self._layers = regular_layers(made, depthwise=settings.depthwise)
        self._sorted = SortedWeights(refresh=settings.refresh)

    @property
    def module(self) -> nn.Module:
        """See Trainee."""
        return self._module

    def groups(self, *, weight_decay: float) -> list[Rates]:
        """See Trainee; weights of layers decay, biases and norms do not."""
        decayed = [one for one in self._module.parameters() if one.dim() > 1]
        others = [one for one in self._module.parameters() if one.dim() <= 1]
        return [Rates(parameters=decayed, decay=weight_decay), Rates(parameters=others)]

    def start_epoch(self, generator: torch.Generator) -> None:
        """See Trainee; the orders of SymReg are made anew, so that an epoch depends on its start alone."""
        self._sorted = SortedWeights(refresh=self._settings.refresh)
        self._training()

    def outputs(self, x: Tensor) -> Tensor:
        """See Trainee."""
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self._amp):
            return self._module(x)

    def penalty(self) -> Tensor | None:
        """SymReg and KURE, means over their layers."""
        settings = self._settings
        found = [self._pull(name, layer.weight) for name, layer in self._layers]
        if not found or not (settings.symmetry or settings.kurtosis):
            return None
        return torch.stack(found).mean()

    def _pull(self, name: str, weight: Tensor) -> Tensor:
        settings, total = self._settings, weight.new_zeros(())
        if settings.symmetry:
            order = self._sorted.order(name, weight)
            total = total + settings.symmetry * symmetry_loss(weight, order, pairing=settings.pairing)
        if settings.kurtosis:
            total = total + settings.kurtosis * kurtosis_loss(weight)
        return total

    def predict(self, x: Tensor) -> Tensor:
        """See Trainee; norms use their running statistics."""
        self._module.eval()
        try:
            return self._module(x)
        finally:
            self._training()

    def after_step(self) -> None:
        """See Trainee."""
        self._sorted.advance()

    def report(self) -> Mapping[str, float]:
        """How lopsided the weights are: SymReg's mean over layers, relative to the mean size of a weight."""
        with torch.no_grad():
            found = [
                symmetry_loss(w, torch.argsort(w.reshape(-1)), pairing="1:1")
                / w.abs().mean().clamp_min(1e-12)
                for w in (layer.weight for _, layer in self._layers)
            ]
        return {"asymmetry": float(torch.stack(found).mean())} if found else {}

    def _training(self) -> None:
        """Training mode but for random parts: their randomness is global, and few epochs do not need it."""
        self._module.train()
        for child in self._module.modules():
            if "drop" in type(child).__name__.lower():
                child.eval()

    def result(self) -> nn.Module:
        """The trained model with bounded weights as plain ones, in eval mode, on the CPU.

        Values are read, not parametrisations taken off: a copied layer shares the class that torch made for
        the parametrised one, and taking them off changes that class.
        """
        made = copy.deepcopy(self._plain)
        state: dict[str, Tensor] = {}
        for name in made.state_dict():
            owner, _, leaf = name.rpartition(".")
            state[name] = getattr(self._module.get_submodule(owner), leaf).detach().cpu()
        made.load_state_dict(state)
        return made.eval().requires_grad_(False)
