"""What one build learns with: its calibration images as pixels, its options, and where activations and
finished parts are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mixport.model.float_model import FloatModel
from mixport.quantize.graph.capture import Captured
from mixport.quantize.learn.loop.activation_store import ActivationStore
from mixport.quantize.learn.loop.checkpoints import UnitCheckpoints
from mixport.quantize.learn.mlps.reconstruct import ReconstructedMlps, reconstruct_mlps
from mixport.quantize.learn.reconstruction.reconstruct import Reconstructed, reconstruct
from mixport.quantize.learn.reconstruction.task import Task
from mixport.records.calibration_set import CalibrationSet
from mixport.records.choices.reconstruction_preset import ReconstructionOptions
from mixport.records.choices.scheme import Scheme
from mixport.records.progress import Progress
from mixport.storage.images import normalise

_LARGEST_IN_MEMORY = 300_000_000
"""Bytes of one tensor for all calibration images; larger ones lie in mapped files. Four are alive at once."""


@dataclass(frozen=True, kw_only=True)
class LearningSession:
    """Learns MLPs in float, and later the rounding of units.

    Attributes:
        model: float model.
        calibration: images.
        options: recipe, steps, seed, device.
        workdir: existing folder, for activations that are mapped.
        checkpoints: finished MLPs and units of an interrupted run.
        progress: bars.
    """

    model: FloatModel
    calibration: CalibrationSet
    options: ReconstructionOptions
    workdir: Path
    checkpoints: UnitCheckpoints
    progress: Progress

    def mlps(self, captured: Captured, scheme: Scheme) -> ReconstructedMlps:
        """Alter the MLPs of the captured graph in place, where the recipe says so."""
        if not self.options.preset.mlp_reconstruction:
            return ReconstructedMlps()
        return reconstruct_mlps(
            captured.graph,
            self._pixels,
            count=self.calibration.count,
            input_shape=self.model.input_shape,
            dynamic_batch=captured.dynamic_batch,
            activation_bits=scheme.activation_bits,
            options=self.options,
            store=self._store(),
            checkpoints=self.checkpoints,
            progress=self.progress,
        )

    def units(self, task: Task) -> Reconstructed:
        """Learn rounding, steps and what else the recipe says."""
        return reconstruct(
            task,
            self._pixels,
            count=self.calibration.count,
            preset=self.options.preset,
            iters=self.options.iters,
            seed=self.options.seed,
            store=self._store(),
            checkpoints=self.checkpoints,
            progress=self.progress,
        )

    def _pixels(self, part: slice) -> Tensor:
        images = self.calibration.open_images()
        return torch.as_tensor(normalise(np.asarray(images[part]), preprocessing=self.model.preprocessing))

    def _store(self) -> ActivationStore:
        return ActivationStore(
            self.workdir, largest=_LARGEST_IN_MEMORY, device=torch.device(self.options.device)
        )
