"""Names of parameters and buffers that a torch.fx graph can hold: users call their modules `graph`, `code`,
`class` or `a b`.

torch.export keeps each tensor under its path in the model and makes it an attribute of a GraphModule, whose
own attributes (graph, code, meta, recompile and all of nn.Module) are then in the way, and whose generated
Python is no Python where a part of the path is a keyword. The paths of modules, which give sites their names,
are kept elsewhere (nn_module_stack) and stay as the user has them.
"""

from __future__ import annotations

import keyword
from collections.abc import Mapping, MutableMapping
from typing import cast

from torch import Tensor, fx, nn
from torch.export import ExportedProgram

_ADDED = frozenset(
    {"_guards_fn", "_in_spec", "_out_spec", "range_constraints", "shape_env", "validate_inputs"}
)
"""What ExportedProgram.module() adds to the GraphModule (torch 2.14)."""


def free_attributes(program: ExportedProgram) -> None:
    """Give tensors of `program` whose path clashes a name of their own, in place: attribute_0, attribute_1
    and so on.
    """
    signature = program.graph_signature
    specs = (*signature.input_specs, *signature.output_specs)
    targets = list(dict.fromkeys(spec.target for spec in specs if spec.target is not None))
    taken = frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph()))) | _ADDED
    free = (name for i in range(2 * len(targets) + 1) if (name := f"attribute_{i}") not in targets)
    renamed = {
        target: next(free) for target in targets if any(_clashes(part, taken) for part in target.split("."))
    }
    for spec in specs:
        if spec.target in renamed:
            spec.target = renamed[spec.target]
    for tensors in (program.state_dict, program.constants):
        _rename(cast("MutableMapping[str, Tensor]", tensors), renamed)


def _clashes(part: str, taken: frozenset[str]) -> bool:
    return part in taken or not part.isidentifier() or keyword.iskeyword(part)


def _rename(tensors: MutableMapping[str, Tensor], renamed: Mapping[str, str]) -> None:
    for old in [name for name in tensors if name in renamed]:
        tensors[renamed[old]] = tensors.pop(old)
