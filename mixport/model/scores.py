"""What the float model thinks of images: energy, BatchNorm sensitivity, patch entropy. The filters of drawn
images choose by these.

The scores are those of GenQ (arXiv 2312.05272). Lower is better in all of them.
"""

# torch leaves parts of its own signatures without types (hooks).
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from mixport.model.float_model import FloatModel
from mixport.model.run import float_logits
from mixport.model.score_formulas import LayerSums, Scores, leave_one_out_sensitivity, similarity_entropy
from mixport.records.errors import BadInputError, BadOptionError, UnsupportedModelError
from mixport.records.progress import Progress, SilentProgress

BATCHNORM_SENSITIVITY = "batchnorm-sensitivity"
PATCH_ENTROPY = "negative-patch-similarity-entropy"

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class ModelScores:
    """Scores of images under one float model; an `ImageScores`.

    Args:
        model: on the CPU, in eval mode.
        progress: bars.
        batch: images whose BatchNorm statistics are compared with those of the model together; at least 2.
    """

    def __init__(self, model: FloatModel, *, progress: Progress | None = None, batch: int = 64) -> None:
        if batch < 2:
            raise BadOptionError(f"BatchNorm sensitivity in groups of {batch}, allowed 2 or more images")
        self.model, self.batch = model, batch
        self.progress = progress or SilentProgress()

    def energy(self, images: NDArray[np.uint8]) -> Scores:
        """-logsumexp(logits) of each image, [N]: the energy score of Liu et al. 2020 (arXiv 2010.03759) at
        temperature 1.

        Args:
            images: uint8 [N, H, W, 3] at the model's input size.

        Raises:
            BadInputError: the model gives NaN or infinity.
        """
        logits = self._logits(images, progress=self.progress)
        largest = logits.max(axis=1, keepdims=True)
        return -(largest[:, 0] + np.log(np.exp(logits - largest).sum(axis=1)))

    def statistics(
        self, images: NDArray[np.uint8], *, chosen: Sequence[int] | None = None
    ) -> tuple[Scores, str]:
        """How badly each image fits, [N], and the name of the score.

        With BatchNorm layers: `leave_one_out_sensitivity` inside groups of neighbours among the chosen
        images. The groups are of equal size, or differ by one image, and hold at most `batch`, or 3: the
        weight of an image in its group must be the same for all.

        Without, but with LayerNorm over patch tokens: the negative of `similarity_entropy` of the tokens that
        the last such layer reads. High entropy is good, so the negative keeps the rule that lower is better.

        Args:
            images: uint8 [P, H, W, 3] at the model's input size; may be memory-mapped, one group at a time is
                copied.
            chosen: positions of the N images to score; None for all.

        Raises:
            BadInputError: the model gives NaN or infinity, or has BatchNorm and is given one image only.
            BadOptionError: the model has neither.
            UnsupportedModelError: BatchNorm layers that mix images in a way that is not known.
        """
        with_batch_norm = any(_has_statistics(module) for module in self.model.module.modules())
        positions = np.arange(len(images)) if chosen is None else np.asarray(chosen, np.int64)
        count = len(positions)
        if with_batch_norm and count < 2:
            raise BadInputError(
                f"BatchNorm sensitivity compares images with each other, and there is {count}",
                hint="--images 2",
            )
        score = self._sensitivity if with_batch_norm else self._entropy
        # No group of one: it would be empty without its image.
        groups = max(1, min(math.ceil(count / self.batch), count // 2))
        scores: list[Scores] = []
        with self.progress.track("image statistics", total=count) as advance:
            for group in np.array_split(positions, groups):
                scores.append(score(np.asarray(images[group])))
                advance(len(group))
        return np.concatenate(scores), BATCHNORM_SENSITIVITY if with_batch_norm else PATCH_ENTROPY

    def _sensitivity(self, group: NDArray[np.uint8]) -> Scores:
        reader = _SumReader(self.model)
        with _hooked(self.model.module, wanted=_has_statistics, begin=reader.begin, read=reader.read):
            self._logits(group)
        return leave_one_out_sensitivity(reader.layers())

    def _entropy(self, group: NDArray[np.uint8]) -> Scores:
        reader = _TokenReader(self.model)
        with _hooked(self.model.module, wanted=_is_layer_norm, begin=reader.begin, read=reader.read):
            self._logits(group)
        return np.array([-similarity_entropy(tokens) for tokens in reader.tokens()])

    def _logits(self, images: NDArray[np.uint8], *, progress: Progress | None = None) -> NDArray[np.float64]:
        logits = float_logits(self.model, images, progress=progress).astype(np.float64)
        bad = int((~np.isfinite(logits).all(axis=1)).sum())
        if bad:
            raise BadInputError(
                f"{self.model.source} gives NaN or infinity for {bad} of {len(images)} images",
                hint="check --weights, --mean and --std",
            )
        return logits


class _SumReader:
    """Sums of what BatchNorm layers read, call by call, over all batches that pass."""

    def __init__(self, model: FloatModel) -> None:
        self.source, self.images = model.source, 0
        self.batches: list[list[tuple[Scores, Scores, int, nn.Module]]] = []

    def begin(self, images: int) -> None:
        self.images = images
        self.batches.append([])

    def read(self, module: nn.Module, values: Tensor) -> None:
        """Values [N, C, ...], or [N * rows, C, ...] where tokens were flattened image by image."""
        if len(values) % self.images:
            raise UnsupportedModelError(
                (
                    f"{self.source}: a BatchNorm layer reads {list(values.shape)} for {self.images} "
                    "images, allowed a multiple of them"
                ),
                hint="--keep-statistics 1",
            )
        # float64: a score is a small difference of large sums.
        rows = values.double().reshape(self.images, len(values) // self.images, values.shape[1], -1)
        sums, squares = rows.sum((1, 3)).numpy(), rows.square().sum((1, 3)).numpy()
        self.batches[-1].append((sums, squares, rows.shape[1] * rows.shape[3], module))

    def layers(self) -> list[LayerSums]:
        """One entry a call of a layer."""
        return [
            LayerSums(
                sums=np.concatenate([call[0] for call in calls]),
                squares=np.concatenate([call[1] for call in calls]),
                count=calls[0][2],
                mean=calls[0][3].get_buffer("running_mean").double().numpy(),
                variance=calls[0][3].get_buffer("running_var").double().numpy(),
            )
            for calls in zip(*self.batches, strict=True)
        ]


class _TokenReader:
    """Patch tokens that the last LayerNorm over them reads: the output of the last block, in most
    transformers.
    """

    def __init__(self, model: FloatModel) -> None:
        self.source, self.images = model.source, 0
        # Class and register tokens come first and are no patches; timm's models say how many there are.
        self.prefix = int(getattr(model.module, "num_prefix_tokens", 0))
        self.batches: list[Tensor | None] = []

    def begin(self, images: int) -> None:
        self.images = images
        self.batches.append(None)

    def read(self, module: nn.Module, values: Tensor) -> None:
        """Tokens [N, T, C], or [N, H, W, C] as window transformers keep them."""
        over_channels = tuple(getattr(module, "normalized_shape", ())) == (values.shape[-1],)
        if values.dim() not in (3, 4) or not over_channels or len(values) != self.images:
            return
        patches = values[:, self.prefix :] if values.dim() == 3 else values.flatten(1, 2)
        if patches.shape[1] > 1:
            self.batches[-1] = patches.clone()  # a block may add to its input in place

    def tokens(self) -> list[NDArray[np.float64]]:
        """[T, C] of each image."""
        found: list[NDArray[np.float64]] = []
        for batch in self.batches:
            if batch is None:
                raise BadOptionError(
                    (
                        f"--keep-statistics: {self.source} has neither BatchNorm layers nor LayerNorm "
                        "layers over patch tokens [N, T, C]"
                    ),
                    hint="--keep-energy filters with any model; leave --keep-statistics out",
                )
            found.extend(batch.double().numpy())
        return found


@contextmanager
def _hooked(
    root: nn.Module,
    *,
    wanted: Callable[[nn.Module], bool],
    begin: Callable[[int], None],
    read: Callable[[nn.Module, Tensor], None],
) -> Generator[None, None, None]:
    """Call `begin` with the number of images of each batch, and `read` with what each wanted layer reads."""

    def on_batch(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        begin(len(inputs[0]))

    def on_layer(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        read(module, inputs[0])

    handles = [root.register_forward_pre_hook(on_batch)]
    handles += [module.register_forward_pre_hook(on_layer) for module in root.modules() if wanted(module)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, _BATCH_NORMS) and module.running_mean is not None


def _is_layer_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm)
