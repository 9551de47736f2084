"""Put the tensors of a weights file into a model: names, shapes and types must fit, and nothing is made to
fit that may lose a value.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixport.model.weights_file import check_finite
from mixport.records.decision import Decision
from mixport.records.errors import BadInputError

#: Counters that training keeps and inference never reads; a checkpoint may lack them.
_OPTIONAL_SUFFIX = "num_batches_tracked"

_PARALLEL, _COMPILED = "module.", "_orig_mod."
"""What DataParallel puts in front of every name, and torch.compile in front of those of the module that it
wraps.
"""

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def load_into(model: nn.Module, state: dict[str, Tensor], *, source: str) -> tuple[Decision, ...]:
    """Copy `state` into `model`.

    Args:
        model: gets the values.
        state: tensors by name; wrappers' prefixes are taken off where the model has none, and a tensor that
            the model has under two names may be stored under one.
        source: the file, for messages.

    Returns:
        what was done to the names.

    Raises:
        BadInputError: names, shapes, types or values do not fit; names what differs.
    """
    expected = model.state_dict()
    named = _without_wrappers(state, expected)
    full = _with_aliases(model, named, source=source)
    missing = [name for name in expected if name not in full and not name.endswith(_OPTIONAL_SUFFIX)]
    unexpected = [name for name in full if name not in expected]
    if missing or unexpected:
        raise BadInputError(
            (
                f"weights {source} do not match the model: {len(missing)} missing {missing[:3]}, "
                f"{len(unexpected)} unexpected {unexpected[:3]}"
            ),
            hint="check the architecture and its options (--model-arg KEY=VALUE)",
        )
    for name, tensor in full.items():
        if tensor.shape != expected[name].shape:
            raise BadInputError(
                (
                    f"weights {source}: {name} has shape {tuple(tensor.shape)}, the model expects "
                    f"{tuple(expected[name].shape)}"
                ),
                hint="check the architecture and its options (--model-arg num_classes=... for another head)",
            )
        _check_type(name, tensor, expected[name], source=source)
    model.load_state_dict({name: full.get(name, value) for name, value in expected.items()})
    check_finite(model, source=source)
    return _notes(state, named, full)


def _without_wrappers(state: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state under the model's names, where they differ by what wrappers add; else as it is."""
    if all(name in expected for name in state):
        return state
    plain = {_plain(name): name for name in expected}
    renamed = {plain.get(_plain(name), name): tensor for name, tensor in state.items()}
    return renamed if len(plain) == len(expected) and len(renamed) == len(state) else state


def _plain(name: str) -> str:
    name = name.replace(_COMPILED, "")
    while name.startswith(_PARALLEL):
        name = name.removeprefix(_PARALLEL)
    return name


def _with_aliases(model: nn.Module, state: dict[str, Tensor], *, source: str) -> dict[str, Tensor]:
    """The state with every name of a tensor that has several; they must not have two values."""
    names: dict[int, list[str]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        names.setdefault(id(value), []).append(name)
    full = dict(state)
    for aliases in names.values():
        stored = [name for name in aliases if name in state]
        for name in stored[1:]:
            if not torch.equal(state[name], state[stored[0]]):
                raise BadInputError(
                    (
                        f"weights {source}: {stored[0]} and {name} are one tensor in the model, the file "
                        "has two values for it"
                    ),
                    hint="check the options of the architecture that tie weights (--model-arg KEY=VALUE)",
                )
        if stored:
            full.update({name: state[stored[0]] for name in aliases})
    return full


def _check_type(name: str, got: Tensor, expected: Tensor, *, source: str) -> None:
    """Floats for floats; whole numbers for integers, in whatever type they are written."""
    if expected.is_floating_point():
        if got.dtype in _FLOATS:
            return
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in _FLOATS)
        hint = (
            "give the float weights: codes of a model that is quantised already lack their scales, and "
            "mixport chooses its own"
        )
    else:
        if not got.is_floating_point() or bool((got.double() == got.double().round()).all()):
            return
        allowed, hint = (
            f"whole numbers ({str(expected.dtype).removeprefix('torch.')})",
            "check the architecture of the file",
        )
    raise BadInputError(
        f"weights {source}: {name} is {str(got.dtype).removeprefix('torch.')}, allowed {allowed}", hint=hint
    )


def _notes(
    state: dict[str, Tensor], named: dict[str, Tensor], full: dict[str, Tensor]
) -> tuple[Decision, ...]:
    notes: list[Decision] = []
    if named is not state:
        why = "DataParallel and torch.compile put them in front of the model's own names"
        notes.append(
            Decision(where="weights", what=f"prefixes {_PARALLEL} and {_COMPILED} taken off", why=why)
        )
    filled = [name for name in full if name not in named]
    if filled:
        what = f"{len(filled)} tensors taken from their other name ({', '.join(filled[:3])})"
        notes.append(
            Decision(where="weights", what=what, why="the model shares them, and the file stores them once")
        )
    return tuple(notes)
