"""May torch.export.load read this .pt2 file? A graph of ATen operators and plain tensors pass; nothing of it
is run or unpickled.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch

from mixport.model.torchscript import is_torchscript
from mixport.records.errors import BadInputError
from mixport.storage.npz import ARCHIVE_DAMAGE

PLAIN_HINT = (
    "torch.export.save(torch.export.export(model, (image,)), 'model.pt2') with a plain module writes a "
    "safe file"
)
_MAX_JSON_BYTES = 64 << 20

_WEIGHTS, _CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"
_GRAPH, _EXAMPLES = "models/model.json", "data/sample_inputs/model.pt"
_PAYLOADS: Mapping[str, re.Pattern[str]] = {
    _WEIGHTS: re.compile(r"weight_\d+"),
    _CONSTANTS: re.compile(r"tensor_\d+"),
}
"""Index of tensors -> the names their bytes may have: the prefix of a name decides how torch reads it."""

_MEMBER = re.compile(
    r"data/weights/(?:model_weights_config\.json|weight_\d+)|data/constants/(?:model_constants_config\.json|tensor_\d+)"
    r"|data/sample_inputs/model\.pt|models/model\.json|extra/.*"
    r"|archive_format|archive_version|version|byteorder|\.format_version|\.storage_alignment|\.data/(?:version|serialization_id)"
)
"""What torch.export.save writes. Anything else is a door: compiled code, weights of an older format, pickled
objects.
"""

_SHAPE_EXPRESSION = re.compile(
    r"(?:Symbol\('[su]\d+'(?:, (?:positive|integer|nonnegative)=True)*\)|Integer\(-?\d+\)"
    r"|Float\('-?[\d.e+\-]+'(?:, precision=\d+)?\)|\b[su]?\d+\b"
    r"|\b(?:Add|Mul|Pow|Rational|Max|Min|Mod|PythonMod|ModularIndexing|FloorDiv|CleanDiv|CeilDiv|CeilToInt|FloorToInt|IntTrueDiv|TruncToInt"
    r"|PowByNatural|ToFloat|Identity|Where|Equality|Unequality|Eq|Ne|StrictLessThan|StrictGreaterThan|LessThan|GreaterThan|And|Or|Not"
    r"|floor|ceiling|int_oo|oo|true|false|True|False)\b|[ +\-*/(),])*"
)
"""What sympy may be given: torch reads shapes by sympify, which evaluates Python. Whole names only, no
attributes, no strings.
"""

_OPERATOR = re.compile(
    r"torch\.ops\.(?:aten(?!\.from_file\b)|prims|higher_order|mixport)\.\w+(?:\.\w+)?"
    r"|_operator\.(?:getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_)"
    r"|torch\.sym_(?:int|float|max|min|not|ite|sqrt)|math\.(?:ceil|floor|trunc)"
)
"""Functions that a node may call. from_file opens a file of the user's, to read or to write."""


def check_archive(path: Path) -> None:
    """Refuse what torch.export.load, or a run of the program, would execute.

    The doors: tensors and constants stored as pickles, example inputs (torch falls back on a full unpickle),
    compiled code beside the graph, weights in the older format, symbolic shapes (parsed by sympy through
    eval), operator names (any attribute path below torch or operator), and a second member of the same name,
    which another reader may take for the first.

    Raises:
        BadInputError: damaged, or refused, with what was found.
    """
    if is_torchscript(path):
        raise refused(path, "it is an archive of torch.jit.save, expected one of torch.export.save")
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(path, archive)
            if _WEIGHTS not in members:
                raise refused(
                    path, "it has no weight index: an older format, which torch reads by unpickling"
                )
            for inner in members:
                if not _MEMBER.fullmatch(inner):
                    raise refused(path, f"it holds {inner}, allowed a graph and plain tensors")
            for inner in (_WEIGHTS, _CONSTANTS, _GRAPH):
                if inner not in members:
                    continue
                if archive.getinfo(members[inner]).file_size > _MAX_JSON_BYTES:
                    raise refused(path, f"{inner} is larger than {_MAX_JSON_BYTES} bytes")
                document: object = json.loads(archive.read(members[inner]))
                if inner in _PAYLOADS:
                    _check_payloads(path, inner, document)
                _check_json(path, inner, document)
            if _EXAMPLES in members:
                torch.load(io.BytesIO(archive.read(members[_EXAMPLES])), weights_only=True)
    except pickle.UnpicklingError as error:
        raise refused(path, "its example inputs would run code when read") from error
    except (*ARCHIVE_DAMAGE, RecursionError) as error:
        raise BadInputError(
            f"program {path} is damaged or not a .pt2 archive: {error}", hint=PLAIN_HINT
        ) from error


def refused(path: Path, why: str, *, hint: str = PLAIN_HINT) -> BadInputError:
    """The error for a program that is not read."""
    return BadInputError(f"program {path} was refused: {why}", hint=hint)


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, str]:
    """Names below the one top folder -> full names. Folders of an archive that was packed again are left
    out.
    """
    names = [name for name in archive.namelist() if not name.endswith("/")]
    tops = {name.partition("/")[0] for name in names}
    if len(tops) > 1:
        raise refused(path, f"it has {len(tops)} top folders, expected 1")
    # torch's reader may not tell capitals from small letters.
    if len({name.casefold() for name in names}) != len(names):
        raise refused(path, "two of its members have the same name")
    return {name.partition("/")[2]: name for name in names}


def _check_payloads(path: Path, inner: str, document: object) -> None:
    """An index of tensors names raw bytes only."""
    entries = cast("dict[str, object]", document).get("config") if isinstance(document, dict) else None
    if not isinstance(entries, dict):
        raise refused(path, f"{inner} is no index of tensors")
    for name, entry in cast("dict[str, object]", entries).items():
        fields = cast("dict[str, object]", entry) if isinstance(entry, dict) else {}
        if fields.get("use_pickle") is not False:
            raise refused(path, f"{inner} holds pickled tensors ({name})")
        if not _PAYLOADS[inner].fullmatch(str(fields.get("path_name"))):
            raise refused(
                path,
                (
                    f"{name} in {inner} is stored as {str(fields.get('path_name'))[:60]!r}, allowed "
                    "plain tensors"
                ),
            )


def _check_json(path: Path, inner: str, value: object) -> None:
    if isinstance(value, list):
        for item in cast("list[object]", value):
            _check_json(path, inner, item)
        return
    if not isinstance(value, dict):
        return
    fields = cast("dict[str, object]", value)
    expression = fields.get("expr_str")
    if isinstance(expression, str) and not _SHAPE_EXPRESSION.fullmatch(expression):
        raise refused(path, f"{inner} holds the shape expression {expression[:60]!r}")
    called = [fields.get("target") if "inputs" in fields else None, fields.get("as_operator")]
    for name in called:
        if isinstance(name, str) and not _OPERATOR.fullmatch(name):
            raise refused(path, f"{inner} calls {name[:80]!r}, allowed ATen operators")
    for item in fields.values():
        _check_json(path, inner, item)
