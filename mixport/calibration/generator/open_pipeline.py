"""A diffusers pipeline, opened without running foreign code and ready to draw."""

# diffusers and torch leave parts of their interfaces without types, and diffusers loads its names lazily.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import contextlib
import difflib
import inspect
import warnings
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mixport.calibration.generator.missing_weights import watch_missing_weights
from mixport.calibration.generator.request import SAFETY_CHECKER, DrawingRequest
from mixport.records.errors import BadInputError, BadOptionError

#: Arguments of pipelines that change images instead of drawing them.
_EDITING = frozenset({"image", "mask_image", "video"})
_MOST_NAMES = 5
_NO_LIMIT = 1_000_000


@dataclass(frozen=True, kw_only=True)
class OpenPipeline:
    """A loaded pipeline.

    Attributes:
        pipe: the diffusers pipeline, on its device.
        name: of the generator, for messages.
        device: cpu or cuda.
        arguments: what its `__call__` takes.
        scheduler: class and configuration, for the record.
    """

    pipe: Any
    name: str
    device: str
    arguments: Mapping[str, inspect.Parameter]
    scheduler: Mapping[str, Any]


def open_pipeline(request: DrawingRequest) -> OpenPipeline:
    """Load the pipeline that a request names: safetensors only, no remote code, nothing fetched.

    Raises:
        BadInputError: the folder cannot be loaded, or the pipeline does not draw images from text.
        BadOptionError: unknown scheduler.
    """
    with quiet_libraries():
        import torch

        pipeline_class = _text_to_image_class(request)
        scheduler_class = _scheduler_class(request.scheduler) if request.scheduler is not None else None
        pipe = _load(pipeline_class, request, dtype=getattr(torch, request.dtype))
        if scheduler_class is not None:
            _set_scheduler(pipe, scheduler_class, name=request.generator.name)
        pipe.set_progress_bar_config(disable=True)
        _move(pipe, request)
    return OpenPipeline(
        pipe=pipe,
        name=request.generator.name,
        device=request.device,
        arguments=inspect.signature(pipeline_class.__call__).parameters,
        scheduler={
            "class": type(pipe.scheduler).__name__,
            "config": {key: str(value) for key, value in pipe.scheduler.config.items()},
        },
    )


def check_lengths(opened: OpenPipeline, texts: Iterable[str]) -> None:
    """Refuse prompts whose end no text encoder reads: a class that is cut off would be missing from its
    images.

    Raises:
        BadInputError: naming the longest prompt.
    """
    tokenizers = [
        part
        for name, part in opened.pipe.components.items()
        if name.startswith("tokenizer") and part is not None
    ]
    longest: tuple[int, str] = (0, "")
    limits = [_limit(tokenizer) for tokenizer in tokenizers]
    if not tokenizers or max(limits) >= _NO_LIMIT:
        return
    tokenizer, limit = max(zip(tokenizers, limits, strict=True), key=lambda pair: pair[1])
    for text in texts:
        longest = max(longest, (len(tokenizer(text, truncation=False, verbose=False).input_ids), text))
    if longest[0] > limit:
        raise BadInputError(
            f"prompt {longest[1]!r} has {longest[0]} tokens, the text encoder of {opened.name} reads {limit}",
            hint="--label-text name, a shorter --template, or fewer --classes-per-prompt",
        )


def _limit(tokenizer: Any) -> int:
    stated = getattr(tokenizer, "model_max_length", None)
    return int(min(stated, _NO_LIMIT)) if isinstance(stated, (int, float)) and stated > 0 else _NO_LIMIT


def _text_to_image_class(request: DrawingRequest) -> Any:
    import diffusers

    name = request.generator.folder.class_name
    found = getattr(diffusers, name, None)
    if not isinstance(found, type) or not issubclass(found, diffusers.DiffusionPipeline):
        raise BadInputError(
            (
                f"generator {request.generator.name} is a {name}, which diffusers "
                f"{diffusers.__version__} does not know"
            ),
            hint="pip install --upgrade diffusers",
        )
    arguments = inspect.signature(found.__call__).parameters
    editing = sorted(_EDITING & arguments.keys())
    if "prompt" not in arguments or editing:
        why = f"it takes {', '.join(editing)}" if editing else "its call takes no prompt"
        raise BadInputError(
            (
                f"generator {request.generator.name} is a {name}, which does not draw images from text "
                f"alone: {why}"
            ),
            hint="--generator with a text-to-image pipeline",
        )
    return found


def _scheduler_class(name: str) -> Any:
    import diffusers

    found = getattr(diffusers, name, None)
    if (
        isinstance(found, type)
        and issubclass(found, diffusers.SchedulerMixin)
        and found is not diffusers.SchedulerMixin
    ):
        return found
    known = sorted(one for one in dir(diffusers) if one.endswith("Scheduler") and not one.startswith("Flax"))
    near = difflib.get_close_matches(name, known, n=_MOST_NAMES, cutoff=0.3)
    raise BadOptionError(
        (
            f"--gen-scheduler {name} is no scheduler of diffusers {diffusers.__version__}, the nearest "
            f"are {', '.join(near or known)}"
        ),
        hint=f"--gen-scheduler {near[0] if near else 'DPMSolverMultistepScheduler'}",
    )


def _load(pipeline_class: Any, request: DrawingRequest, *, dtype: Any) -> Any:
    folder = request.generator.folder
    left_out: dict[str, Any] = {}
    if SAFETY_CHECKER in folder.components and not request.safety_checker:
        left_out = {SAFETY_CHECKER: None, "requires_safety_checker": False}
    try:
        with watch_missing_weights() as missing:
            pipe = pipeline_class.from_pretrained(
                folder.path,
                torch_dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                **left_out,
            )
    except ImportError as error:
        raise BadInputError(
            f"generator {request.generator.name} needs a package that is not installed: {first_line(error)}",
            hint="pip install it",
        ) from error
    # from_pretrained reads files of other people: whatever it stumbles over is in them.
    except Exception as error:
        raise BadInputError(
            (
                f"generator {request.generator.name} ({folder.path}) cannot be loaded: "
                f"{type(error).__name__}: {first_line(error)}"
            ),
            hint=(
                'python -c "from diffusers import DiffusionPipeline as P; '
                f'P.from_pretrained({str(folder.path)!r})" shows more'
            ),
        ) from error
    if missing:
        raise BadInputError(
            (
                f"generator {request.generator.name} ({folder.path}) lacks weights that its classes "
                f"need: {'; '.join(missing)}"
            ),
            hint="fetch the folder again, or check the classes in its model_index.json",
        )
    return pipe


def _set_scheduler(pipe: Any, scheduler_class: Any, *, name: str) -> None:
    own = getattr(pipe, "scheduler", None)
    if own is None:
        raise BadOptionError(
            f"generator {name} has no scheduler that --gen-scheduler could replace",
            hint="leave --gen-scheduler out",
        )
    try:
        pipe.scheduler = scheduler_class.from_config(own.config)
    # Schedulers check their arguments each in its own way.
    except Exception as error:
        raise BadOptionError(
            (
                f"--gen-scheduler {scheduler_class.__name__} cannot take over the configuration of "
                f"generator {name}: {first_line(error)}"
            ),
            hint="leave --gen-scheduler out, or --gen-scheduler DPMSolverMultistepScheduler",
        ) from error


def _move(pipe: Any, request: DrawingRequest) -> None:
    import torch

    try:
        pipe.to(request.device)
        if request.device == "cuda":
            for part in (one for one in pipe.components.values() if isinstance(one, torch.nn.Module)):
                part.to(memory_format=torch.channels_last)
    # torch.OutOfMemoryError is one of these.
    except RuntimeError as error:
        raise BadInputError(
            f"generator {request.generator.name} cannot be moved to {request.device}: {first_line(error)}",
            hint="--gen-dtype float16, a smaller --generator, or --device cpu",
        ) from error


@contextlib.contextmanager
def quiet_libraries() -> Generator[None]:
    """No bars, advice or deprecations from diffusers and transformers inside the block; their settings are
    put back.
    """
    import diffusers.utils.logging
    import transformers.utils.logging

    libraries: list[Any] = [diffusers.utils.logging, transformers.utils.logging]
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        # The name of `torch_dtype` changes between versions, and the old one works in all of them.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for library, (verbosity, bars) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()


def first_line(error: Exception) -> str:
    """What an error of another library says, without its long rest."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
