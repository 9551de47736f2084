"""The growing folder of everything that one drawing request gave so far: images are drawn once, whoever asks,
however often.

CACHE/drawn/<key>/recipe.json   what was asked
CACHE/drawn/<key>/*.zip         shards of `batch` images
CACHE/drawn/<key>/manifest.json what came out
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixport.calibration.drawn_images.recipe_file import write_recipe
from mixport.calibration.drawn_images.shards import ShardFolder, read_manifest, shard_files
from mixport.calibration.drawn_images.similarity_file import SIMILARITY_FILE, pack_similarity, read_similarity
from mixport.calibration.generator.drawer import Drawer
from mixport.calibration.generator.embeddings import text_similarity
from mixport.calibration.generator.open_pipeline import (
    OpenPipeline,
    check_lengths,
    open_pipeline,
    quiet_libraries,
)
from mixport.calibration.generator.request import DrawingRequest
from mixport.calibration.prompts.prompts import Prompt, prompts
from mixport.records.errors import BadOptionError
from mixport.records.machine import describe_environment
from mixport.records.progress import Progress
from mixport.storage.store import Store

DRAWN_KIND = "drawn"


@dataclass(frozen=True, kw_only=True)
class DrawnFolder:
    """The drawn images of a request, at least as many as were asked for; valid while the folder's lock is
    held.

    Attributes:
        shards: the folder.
        prompts: of every image, from image 0.
    """

    shards: ShardFolder
    prompts: Sequence[Prompt]

    def images(self, count: int) -> Generator[NDArray[np.uint8]]:
        """The first `count` images, uint8 [H, W, 3], in the size that was drawn."""
        for first in range(0, count, self.shards.batch):
            yield from self.shards.read(first).images[: count - first]

    def blackened(self, count: int) -> tuple[int, ...]:
        """Which of the first `count` images the generator's safety checker blackened."""
        notes = [self.shards.record(first).note for first in range(0, count, self.shards.batch)]
        return tuple(index for note in notes for index in note.get("blackened", ()) if index < count)


def drawn_folder_path(store: Store, key: str) -> Path:
    """Where the images of a request lie."""
    return store.root / DRAWN_KIND / key


def images_at_hand(request: DrawingRequest, *, store: Store) -> int:
    """How many images of a request are in the cache, by the names of files."""
    return sum(count for _, count in shard_files(drawn_folder_path(store, request.key), batch=request.batch))


def images_to_draw(request: DrawingRequest, *, count: int, store: Store) -> int:
    """How many images `draw_into` will draw so that there are `count`: whole batches, by the names of
    files.
    """
    there = {first for first, _ in shard_files(drawn_folder_path(store, request.key), batch=request.batch)}
    return request.batch * sum(first not in there for first in range(0, count, request.batch))


@contextlib.contextmanager
def draw_into(
    request: DrawingRequest, *, count: int, store: Store, progress: Progress
) -> Generator[DrawnFolder]:
    """Draw what is missing of the first `count` images, and hold the folder's lock for the block.

    Whole batches are drawn: with the prompts that would come next, not with padding, so that a later call
    finds them. A killed process loses one batch. The pipeline is opened only where something is missing.
    Damaged shards move to `.damaged`, are noted in `store.damaged` and drawn again.

    Raises:
        BadInputError: the generator cannot be used, or gives broken images.
        BadOptionError: the prompt recipe, or a setting of the generator, is not allowed.
        StoreError: the cache cannot be written.
    """
    shards = ShardFolder(drawn_folder_path(store, request.key), batch=request.batch, cache=store.root)
    session = _Session(request)
    try:
        with (
            contextlib.ExitStack() as bars,
            shards.lock(on_wait=_waiting(progress, bars, shards, count=count)),
        ):
            bars.close()
            total = -(-count // request.batch) * request.batch
            sequence = _prompts(session, shards, count=total)
            missing = [first for first in range(0, total, request.batch) if not _has(shards, first, sequence)]
            if missing:
                _draw_missing(session, shards, sequence, missing, progress=progress)
            else:
                write_recipe(shards, request)
                if not shards.sealed:
                    shards.seal(metadata=_metadata_so_far(shards))
            yield DrawnFolder(shards=shards, prompts=sequence)
    finally:
        store.damaged += shards.damaged


class _Session:
    """The pipeline of a request, opened at its first use."""

    def __init__(self, request: DrawingRequest) -> None:
        self.request = request
        self._opened: OpenPipeline | None = None

    def opened(self) -> OpenPipeline:
        if self._opened is None:
            self._opened = open_pipeline(self.request)
        return self._opened


def _draw_missing(
    session: _Session,
    shards: ShardFolder,
    sequence: Sequence[Prompt],
    missing: Sequence[int],
    *,
    progress: Progress,
) -> None:
    request = session.request
    wanted = [index for first in missing for index in range(first, first + request.batch)]
    opened = session.opened()
    with quiet_libraries(), progress.track("drawing images", total=len(wanted)) as advance:
        check_lengths(opened, {sequence[index].text for index in wanted})
        started = time.perf_counter()
        drawer = Drawer(opened, request, sequence, wanted=wanted)
        for first in missing:
            batch = drawer.draw(range(first, first + request.batch))
            note = {
                "pieces": list(batch.pieces),
                "conditions": drawer.conditions.mode,
                "blackened": [first + place for place in batch.blackened],
                "prompts": _prompt_notes(sequence[first : first + request.batch]),
            }
            # Not before there is something to describe.
            write_recipe(shards, request)
            shards.write(first, batch.images, note=note)
            advance(request.batch)
    earlier = _metadata_so_far(shards).get("seconds")
    shards.seal(
        metadata={
            "generator": request.generator.name,
            "conditions": drawer.conditions.mode,
            "seconds": round(
                (earlier if isinstance(earlier, float) else 0.0) + time.perf_counter() - started, 3
            ),
            "scheduler": dict(opened.scheduler),
            "environment": {**describe_environment(), **_threads()},
        }
    )


def _has(shards: ShardFolder, first: int, sequence: Sequence[Prompt]) -> bool:
    """Whether a shard is there, whole, and drawn from the prompts that this version makes of the recipe."""
    if not shards.has(first):
        return False
    record = shards.record(first)
    if record.note.get("prompts") == _prompt_notes(sequence[first : first + shards.batch]):
        return True
    shards.set_aside(record.file, "was drawn from other prompts")
    return False


def _prompts(session: _Session, shards: ShardFolder, *, count: int) -> Sequence[Prompt]:
    def similarity(texts: Sequence[str]) -> NDArray[np.float32]:
        known, problem = read_similarity(shards.path)
        if known is not None and len(known) == len(texts):
            return known
        if known is not None or problem is not None:
            shards.set_aside(SIMILARITY_FILE, problem or f"does not belong to {len(texts)} texts")
        found = text_similarity(session.opened(), texts)
        if found is None:
            raise BadOptionError(
                f"--pairing far: the text encoder of {session.request.generator.name} cannot be asked alone",
                hint="--pairing balanced",
            )
        shards.write_file(SIMILARITY_FILE, pack_similarity(found))
        return found

    return prompts(session.request.prompts, count=count, similarity=similarity)


def _prompt_notes(sequence: Sequence[Prompt]) -> list[dict[str, Any]]:
    return [{"text": one.text, "classes": list(one.classes), "seed": one.seed} for one in sequence]


def _metadata_so_far(shards: ShardFolder) -> Mapping[str, Any]:
    manifest, _ = read_manifest(shards.path)
    return manifest.metadata if manifest is not None else {}


def _threads() -> dict[str, str]:
    import torch

    return {"threads": str(torch.get_num_threads())}


def _waiting(
    progress: Progress, bars: contextlib.ExitStack, shards: ShardFolder, *, count: int
) -> Callable[[], None]:
    """What to do about every second while another process draws the same images: show how far it is."""
    shown = 0
    advance: Callable[[int], None] | None = None

    def on_wait() -> None:
        nonlocal advance, shown
        if advance is None:
            advance = bars.enter_context(
                progress.track("waiting for another process that draws these images", total=count)
            )
        there = min(count, sum(number for _, number in shard_files(shards.path, batch=shards.batch)))
        advance(max(0, there - shown))
        shown = max(shown, there)

    return on_wait
