"""Read FILE.pt2 (torch.export) from an unknown origin: archives that would run code are refused before torch
sees them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from mixport.model.programs.attribute_names import free_attributes
from mixport.model.programs.eval_form import to_eval_form
from mixport.model.programs.program_archive import PLAIN_HINT, check_archive
from mixport.records.decision import Decision
from mixport.records.errors import BadInputError, UnsupportedModelError

_ONE_IMAGE_HINT = (
    "torch.export.export(model, (image,)), with a module whose forward takes one float32 image batch [N, "
    "3, H, W]"
)
_FLOAT_HINT = "torch.export.export(model.float(), (image.float(),)) outside torch.autocast"
_PIXELS_HINT = (
    "export the model without its own scaling of pixels; --mean and --std of mixport build state it"
)


@dataclass(frozen=True, kw_only=True)
class ProgramFile:
    """A torch.export program as a module in eval form.

    Attributes:
        module: the program.
        size: (height, width) of its image input.
        any_size: it was exported for other sizes too; `size` is that of its example.
        one_image: it takes a batch of one only.
        notes: what was done to it.
    """

    module: nn.Module
    size: tuple[int, int]
    any_size: bool
    one_image: bool
    notes: tuple[Decision, ...]


def load_program(path: Path) -> ProgramFile:
    """Load a .pt2 file.

    Raises:
        BadInputError: missing, damaged, or holding pickled objects.
        UnsupportedModelError: not one float32 [N, 3, H, W] input by position, or weights of another type.
    """
    if not path.is_file():
        raise BadInputError(f"program {path} does not exist", hint=PLAIN_HINT)
    check_archive(path)
    try:
        program = torch.export.load(path)
    except Exception as error:  # torch raises many types on a damaged archive
        raise BadInputError(f"program {path} cannot be read: {error}", hint=PLAIN_HINT) from error
    image = _image_input(path, program)
    _check_weights(path, program)
    batch, _, height, width = image.shape
    free_attributes(program)
    module = program.module(check_guards=False)
    _detach_copies(module)
    notes = to_eval_form(module)
    return ProgramFile(
        module=module,
        size=(int(height), int(width)),
        any_size=_is_symbol(height) or _is_symbol(width),
        one_image=not _is_symbol(batch),
        notes=notes,
    )


def _image_input(path: Path, program: torch.export.ExportedProgram) -> Tensor:
    """The (fake) tensor of the program's one input, checked."""
    values: list[Any] = [
        node.meta["val"]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    ]
    shapes = [tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__ for value in values]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1] != 3:
        raise UnsupportedModelError(
            f"program {path}: inputs have shapes {shapes}, expected one [N, 3, H, W]", hint=_ONE_IMAGE_HINT
        )
    image = cast("Tensor", values[0])
    arguments, keywords = cast(
        "tuple[tuple[object, ...], dict[str, object]]", program.example_inputs or ((image,), {})
    )
    if keywords:
        (name,) = keywords
        raise UnsupportedModelError(
            f"program {path}: it takes the image as the keyword {name!r}, allowed one argument by position",
            hint=_ONE_IMAGE_HINT,
        )
    if not isinstance(arguments[0], Tensor):
        raise UnsupportedModelError(
            f"program {path}: it takes the image inside a {type(arguments[0]).__name__}, allowed a tensor",
            hint=_ONE_IMAGE_HINT,
        )
    if image.dtype is not torch.float32:
        hint = _FLOAT_HINT if image.dtype.is_floating_point else _PIXELS_HINT
        raise UnsupportedModelError(
            f"program {path}: it takes {_name(image.dtype)} images, allowed float32", hint=hint
        )
    if not _is_symbol(image.shape[0]) and image.shape[0] != 1:
        raise UnsupportedModelError(
            f"program {path}: it takes {image.shape[0]} images at once, allowed 1 or any number",
            hint="torch.export.export(model, (image,), dynamic_shapes=({0: torch.export.Dim('batch')},))",
        )
    return image


def _check_weights(path: Path, program: torch.export.ExportedProgram) -> None:
    for name, value in program.named_parameters():
        if value.is_floating_point() and value.dtype is not torch.float32:
            raise UnsupportedModelError(
                f"program {path}: {name} is {_name(value.dtype)}, allowed float32", hint=_FLOAT_HINT
            )


def _detach_copies(module: fx.GraphModule) -> None:
    """torch.tensor(...) in forward detaches its copy in place, which a second export refuses; out of place it
    is the same.
    """
    for node in module.graph.nodes:
        if node.target is torch.ops.aten.detach_.default:
            node.target = torch.ops.aten.detach.default
    module.recompile()


def _is_symbol(size: object) -> bool:
    return isinstance(size, torch.SymInt)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
