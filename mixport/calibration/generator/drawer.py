"""Images from prompts, batch by batch: own noise for each image, smaller pieces where memory runs out, broken
images refused.
"""

# diffusers and torch leave parts of their interfaces without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixport.calibration.generator.embeddings import PromptConditions
from mixport.calibration.generator.open_pipeline import OpenPipeline, first_line
from mixport.calibration.generator.request import DrawingRequest
from mixport.calibration.prompts.prompts import Prompt
from mixport.records.errors import BadInputError, MixportError
from mixport.storage.images import Pixels

#: What allocators on a CPU say; on a GPU torch has an exception of its own.
_OUT_OF_MEMORY = (
    "defaultcpuallocator",
    "not enough memory",
    "can't allocate memory",
    "bad alloc",
    "cannot allocate memory",
)


@dataclass(frozen=True, kw_only=True)
class DrawnBatch:
    """The images of one batch.

    Attributes:
        images: uint8 [B, H, W, 3].
        pieces: sizes of the calls it was drawn in; one unless memory ran out.
        blackened: places inside the batch that the safety checker blackened.
    """

    images: Pixels
    pieces: tuple[int, ...]
    blackened: tuple[int, ...]


class Drawer:
    """Draws the images of a sequence of prompts, `request.batch` at once.

    Args:
        opened: the pipeline.
        request: steps, guidance, size, batch.
        prompts: of every image of the sequence, from image 0.
        wanted: indices that will be drawn.
    """

    def __init__(
        self,
        opened: OpenPipeline,
        request: DrawingRequest,
        prompts: Sequence[Prompt],
        *,
        wanted: Sequence[int],
    ) -> None:
        self.opened, self.request, self.prompts = opened, request, prompts
        self.conditions = PromptConditions(
            opened,
            [prompt.text for prompt in prompts],
            wanted=wanted,
            negative_prompt=request.negative_prompt,
            guided=request.guided,
        )
        self.piece = request.batch
        self._fixed = _fixed_arguments(opened, request)

    def draw(self, indices: Sequence[int]) -> DrawnBatch:
        """Draw these images. Out of memory halves the pieces, for this batch and for those that follow.

        Raises:
            BadInputError: the pipeline fails, needs more memory than there is for one image, or gives broken
                images.
        """
        images: list[Pixels] = []
        blackened: list[int] = []
        pieces: list[int] = []
        left = list(indices)
        while left:
            taken = left[: self.piece]
            # The exception of a failed call holds its tensors: it must be gone before the next try.
            drawn = self._try(taken)
            if drawn is None:
                self._halve(len(taken))
                continue
            blackened += [len(indices) - len(left) + place for place in drawn[1]]
            images.append(drawn[0])
            pieces.append(len(taken))
            del left[: len(taken)]
        self.conditions.release(indices)
        return DrawnBatch(images=np.concatenate(images), pieces=tuple(pieces), blackened=tuple(blackened))

    def _try(self, indices: Sequence[int]) -> tuple[Pixels, list[int]] | None:
        try:
            output = self._call(indices)
        except MixportError:
            raise
        except Exception as error:
            if _is_out_of_memory(error):
                return None
            raise BadInputError(
                (
                    f"generator {self.opened.name} fails while drawing: {type(error).__name__}: "
                    f"{first_line(error)}"
                ),
                hint="check --gen-size and --gen-scheduler, or choose another --generator",
            ) from error
        return self._checked(output, indices)

    def _call(self, indices: Sequence[int]) -> Any:
        import torch

        seeds = [self.prompts[index].seed for index in indices]
        noise = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        devices = [torch.cuda.current_device()] if self.opened.device == "cuda" else []
        # Some schedulers draw noise from torch's global stream: seeded here, put back after.
        with torch.random.fork_rng(devices=devices), torch.inference_mode():
            torch.manual_seed(seeds[0])
            return self.opened.pipe(generator=noise, **self.conditions.of(indices), **self._fixed)

    def _checked(self, output: Any, indices: Sequence[int]) -> tuple[Pixels, list[int]]:
        values = getattr(output, "images", None)
        if (
            not isinstance(values, np.ndarray)
            or values.ndim != 4
            or values.shape[3] != 3
            or len(values) != len(indices)
        ):
            raise BadInputError(
                f"generator {self.opened.name} gives no RGB images, [{len(indices)}, H, W, 3]",
                hint="choose another --generator",
            )
        flags: Sequence[bool | None] = getattr(output, "nsfw_content_detected", None) or []
        blackened = [place for place, flag in enumerate(flags) if flag]
        for place, index in enumerate(indices):
            if not np.isfinite(values[place]).all():
                raise self._broken(index, "holds NaN or infinity")
        images = np.rint(np.clip(values, 0.0, 1.0) * 255.0).astype(np.uint8)
        for place, index in enumerate(indices):
            if place not in blackened and images[place].min() == images[place].max():
                raise self._broken(index, "has one value everywhere")
        return images, blackened

    def _broken(self, index: int, what: str) -> BadInputError:
        hint = (
            "--gen-dtype float32"
            if self.request.dtype != "float32"
            else "another --seed, --gen-guidance or --gen-scheduler"
        )
        return BadInputError(
            (
                f"generator {self.opened.name} in {self.request.dtype}: image {index} "
                f"({self.prompts[index].text!r}) {what}"
            ),
            hint=hint,
        )

    def _halve(self, failed: int) -> None:
        import torch

        gc.collect()
        if self.opened.device == "cuda":
            torch.cuda.empty_cache()
        if failed == 1:
            raise BadInputError(
                f"generator {self.opened.name}: memory is not enough for one image on {self.opened.device}",
                hint="a smaller --gen-size, --gen-dtype float16, or --device cpu",
            )
        self.piece = -(-failed // 2)


def _fixed_arguments(opened: OpenPipeline, request: DrawingRequest) -> dict[str, Any]:
    wanted: dict[str, Any] = {
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance,
        "output_type": "np",
        # PixArt and others draw a size from a list and resize: the size asked for is the size drawn.
        "use_resolution_binning": False,
    }
    if request.size is not None:
        wanted |= {"height": request.size[0], "width": request.size[1]}
    return {name: value for name, value in wanted.items() if name in opened.arguments}


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _OUT_OF_MEMORY)
