"""Read FILE.pt2 (torch.export) from an unknown origin: archives that would run code are refused before torch sees them."""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn

from mixport.errors import BadInputError, UnsupportedModelError
from mixport.quantize.attribute_names import free_attributes

_HINT = "torch.export.save(torch.export.export(model, (image,)), 'model.pt2') with a plain module writes a safe file"
_MAX_JSON_BYTES = 64 << 20

_SHAPE_EXPRESSION = re.compile(
    r"(?:Symbol\('[su]\d+'(?:, (?:positive|integer|nonnegative)=True)*\)|Integer\(\d+\)|[su]\d+|\d+"
    r"|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|floor|ceiling|int_oo|oo|True|False|[ +\-*/(),])*"
)
_OPERATOR = re.compile(
    r"torch\.ops\.(?:aten|prims|higher_order|mixport)\.\w+(?:\.\w+)?|_operator\.(?:getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|eq|ne|lt|le|gt|ge)"
    r"|torch\.sym_(?:int|float|max|min|not|ite|sqrt)|math\.(?:ceil|floor|trunc)"
)


@dataclass(frozen=True, kw_only=True)
class ProgramFile:
    """A torch.export program as a module, with the (height, width) of its image input, and whether it takes one image only."""

    module: nn.Module
    size: tuple[int, int]
    one_image: bool


def load_program(path: Path) -> ProgramFile:
    """Load a .pt2 file.

    Raises:
        BadInputError: missing, damaged, or holding pickled objects.
        UnsupportedModelError: not one float [N, 3, H, W] input.
    """
    if not path.is_file():
        raise BadInputError(f"program {path} does not exist", hint=_HINT)
    _check_archive(path)
    try:
        program = torch.export.load(path)
    except Exception as error:  # torch raises many types on a damaged archive
        raise BadInputError(f"program {path} cannot be read: {error}", hint=_HINT) from error
    shapes = [
        node.meta["val"].shape
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    ]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1] != 3:
        raise UnsupportedModelError(f"program {path}: inputs have shapes {[tuple(s) for s in shapes]}, expected one [N, 3, H, W]")
    batch, _, height, width = shapes[0]
    if isinstance(batch, int) and batch != 1:
        raise UnsupportedModelError(
            f"program {path}: it takes {batch} images at once, allowed 1 or any number",
            hint="torch.export.export(model, (image,), dynamic_shapes=({0: torch.export.Dim('batch')},))",
        )
    free_attributes(program)
    module = program.module(check_guards=False)
    return ProgramFile(module=module, size=(int(height), int(width)), one_image=isinstance(batch, int))


def takes_one_image(path: Path) -> bool:
    """True where the program was exported with a batch of one fixed."""
    return load_program(path).one_image


def _check_archive(path: Path) -> None:
    """Refuse what torch.export.load would execute.

    Four doors exist: tensors and constants stored as pickles, example inputs (torch falls back on a full unpickle), symbolic
    shapes (parsed by sympy through eval) and operator names (any attribute path below torch or operator).
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.partition("/")[2]: name for name in archive.namelist()}
            if "data/weights/model_weights_config.json" not in members:
                raise _refused(path, "it has no weight index: an older format, which torch reads by unpickling")
            for inner, name in members.items():
                if inner.startswith("data/constants/") and not inner.endswith("_config.json"):
                    raise _refused(path, f"{inner} is a constant object")
                if inner.endswith(".json") and archive.getinfo(name).file_size > _MAX_JSON_BYTES:
                    raise _refused(path, f"{inner} is larger than {_MAX_JSON_BYTES} bytes")
                if inner.endswith(".json"):
                    _check_json(path, inner, json.loads(archive.read(name)))
                if inner.startswith("data/sample_inputs/"):
                    torch.load(io.BytesIO(archive.read(name)), weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused(path, "its example inputs would run code when read") from error
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, EOFError) as error:
        raise BadInputError(f"program {path} is damaged or not a .pt2 archive: {error}", hint=_HINT) from error


def _check_json(path: Path, inner: str, value: object) -> None:
    if isinstance(value, list):
        for item in cast("list[object]", value):
            _check_json(path, inner, item)
        return
    if not isinstance(value, dict):
        return
    fields = cast("dict[str, object]", value)
    if fields.get("use_pickle") is True:
        raise _refused(path, f"{inner} holds pickled tensors")
    expression = fields.get("expr_str")
    if isinstance(expression, str) and not _SHAPE_EXPRESSION.fullmatch(expression):
        raise _refused(path, f"{inner} holds the shape expression {expression[:60]!r}")
    target = fields.get("target")
    if isinstance(target, str) and "inputs" in fields and not _OPERATOR.fullmatch(target):
        raise _refused(path, f"{inner} calls {target[:80]!r}, allowed ATen operators")
    for item in fields.values():
        _check_json(path, inner, item)


def _refused(path: Path, why: str) -> BadInputError:
    return BadInputError(f"program {path} was refused: {why}", hint=_HINT)
