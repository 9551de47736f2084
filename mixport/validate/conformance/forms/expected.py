"""Answers of mixport's own arithmetic: the integer interpreter for QDQ graphs, single NumPy operations for
float steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from mixport.records.errors import InvariantError
from mixport.validate.conformance.forms.case import FormCase, Run
from mixport.validate.crafted.cases import cases_for
from mixport.validate.crafted.cut import input_names
from mixport.validate.interpreter.graph import Array
from mixport.validate.interpreter.interpreter import Interpreter

F32, F64 = np.float32, np.float64

Answer = Callable[..., Any]


def interpreted(
    name: str, model: onnx.ModelProto, feeds: Sequence[tuple[str, Mapping[str, Array]]]
) -> FormCase:
    """A graph whose answers the interpreter gives.

    Args:
        name: of the case.
        model: a graph without float islands.
        feeds: (kind, arrays by input name), one pair a run.

    Raises:
        InvariantError: the interpreter has no answer.
    """
    interpreter = Interpreter(model)
    return FormCase(
        name=name,
        model=model.SerializeToString(),
        runs=tuple(_run(interpreter, name, kind, arrays) for kind, arrays in feeds),
    )


def crafted(
    name: str,
    model: onnx.ModelProto,
    rng: np.random.Generator,
    *,
    inputs: Sequence[str] = ("x",),
    shape: tuple[int, ...] | None = None,
    more: Sequence[tuple[str, Mapping[str, Array]]] = (),
) -> FormCase:
    """A graph with one fused unit, on inputs made from the unit's own integers: near ties, saturation,
    random, all codes or all pairs.

    Args:
        name: of the case.
        model: its inputs are codes, with nothing but an integer Clip between them and the unit.
        rng: source of every random choice.
        inputs: graph inputs, in the order of the unit's.
        shape: of the unit's first input: sizes of pooling windows and inner sizes follow from it.
        more: further runs, as in `interpreted`.
    """
    interpreter = Interpreter(model)
    if len(interpreter.units) != 1 or interpreter.units[0].uncut:
        raise InvariantError(
            f"case {name} holds {len(interpreter.units)} fused units, allowed one that can be cut"
        )
    unit = interpreter.units[0]
    shapes = {} if shape is None else {unit.inputs[0].name: shape}
    ports = dict(zip(input_names(unit), inputs, strict=True))
    runs = [
        _run(interpreter, name, made.kind, {ports[tensor]: array for tensor, array in made.feeds.items()})
        for made in cases_for(unit, shapes=shapes, rng=rng)
    ]
    runs += [_run(interpreter, name, kind, feeds) for kind, feeds in more]
    return FormCase(name=name, model=model.SerializeToString(), runs=tuple(runs))


def computed(
    name: str, model: onnx.ModelProto, answer: Answer, feeds: Sequence[tuple[str, Mapping[str, Array]]]
) -> FormCase:
    """A graph with one output, whose answers a NumPy function of the inputs (in their order) gives."""
    output = model.graph.output[0]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(output.type.tensor_type.elem_type)
    runs: list[Run] = []
    for kind, arrays in feeds:
        with np.errstate(all="ignore"):
            expected = np.asarray(answer(*arrays.values()))
        if expected.dtype != dtype:
            raise TypeError(f"case {name}: the answer is {expected.dtype}, the graph gives {dtype}")
        runs.append(Run(kind=kind, feeds=dict(arrays), expected={output.name: expected}))
    return FormCase(name=name, model=model.SerializeToString(), runs=tuple(runs))


def spread(
    shape: tuple[int, ...],
    rng: np.random.Generator,
    dtype: type[np.floating[Any]] = F32,
    *,
    octaves: int = 10,
) -> Array:
    """Floats of both signs, their exponents uniform in 2^-octaves to 2^octaves."""
    magnitude = np.ldexp(rng.random(shape) + 1, rng.integers(-octaves, octaves, shape))
    return (magnitude * rng.choice([-1.0, 1.0], shape)).astype(dtype)


def bell(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Roughly normal float64 values of deviation 1: sums of uniform ones, alike on every machine, unlike
    those of a library's logarithm.
    """
    total = rng.random(shape) - 0.5
    for _ in range(11):
        total = total + (rng.random(shape) - 0.5)
    return total


def _run(interpreter: Interpreter, name: str, kind: str, feeds: Mapping[str, Array]) -> Run:
    expected: dict[str, Array] = {}
    # Inputs at the ends of the float range overflow on purpose.
    with np.errstate(all="ignore"):
        outputs = interpreter.run_feeds(feeds).outputs
    for output, array in outputs.items():
        if array is None:
            raise InvariantError(
                f"case {name}: no answer for {output}, since of "
                f"{', '.join(interpreter.island_reasons.values())}"
            )
        expected[output] = array
    return Run(kind=kind, feeds=dict(feeds), expected=expected)
