"""The integer interpreter: executes an ONNX file on NumPy and mixport.arithmetic.integer, independently of
torch and of any runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
from numpy.typing import NDArray

from mixport.arithmetic.definitions import ONNXRUNTIME, Definition
from mixport.records.errors import BadInputError, UnsupportedModelError
from mixport.validate.interpreter.execution_plan import ExecutionPlan, Step, build_plan
from mixport.validate.interpreter.float_tables import evaluate_function
from mixport.validate.interpreter.fused_units import FusedUnit, fused_units
from mixport.validate.interpreter.fusion import EIGHT_BIT
from mixport.validate.interpreter.graph import Array, infer_shapes, read_graph
from mixport.validate.interpreter.kernels_elementwise import ELEMENTWISE, SOURCES, shape_of
from mixport.validate.interpreter.kernels_integer import FUSED, quantise, rescale
from mixport.validate.interpreter.kernels_movement import JOINS, MOVES
from mixport.validate.interpreter.kernels_reduce import REDUCTIONS
from mixport.validate.interpreter.values import UNKNOWN, Dequantised, Unknown, Value, as_array

_NO_OVERRIDES: Mapping[str, Array] = {}


@dataclass(frozen=True, kw_only=True)
class Execution:
    """What one run gave.

    Attributes:
        codes: every code tensor that could be computed or was given, by site name.
        outputs: graph outputs by name; None where a float island lies before.
        islands: nodes that were not computed, as `name (operator)`.
        units: the fused units of the file.
    """

    codes: Mapping[str, Array]
    outputs: Mapping[str, Array | None]
    islands: tuple[str, ...]
    units: tuple[FusedUnit, ...]

    @property
    def output(self) -> Array | None:
        """The output named `output`, or the first one."""
        return self.outputs["output"] if "output" in self.outputs else next(iter(self.outputs.values()))


class Interpreter:
    """Executes one file.

    Attributes:
        plan: how each node is executed.
        sites: names of the code tensors, in graph order.
        entry_sites: sites directly behind a float island: their codes must be given as overrides.
        island_names: float islands as `name (operator)`, in graph order.
        island_reasons: why, by the same names.
        units: fused units that can be cut out of the file.
    """

    def __init__(
        self,
        model: Path | str | onnx.ModelProto,
        *,
        watch: Sequence[str] = (),
        definition: Definition = ONNXRUNTIME,
    ) -> None:
        """Read and plan; nothing runs.

        Args:
            model: path, or a model in memory.
            watch: more code tensors to record besides the sites.
            definition: arithmetic of the device.

        Raises:
            BadInputError: unreadable file.
        """
        self.plan: ExecutionPlan = build_plan(read_graph(model), definition)
        self._definition = definition
        self.sites = tuple(site.name for site in self.plan.sites)
        self.entry_sites = tuple(site.name for site in self.plan.sites if site.entry)
        self.island_reasons: Mapping[str, str] = {
            f"{s.node.name} ({s.node.op})": s.reason for s in self.plan.islands
        }
        self.island_names = tuple(self.island_reasons)
        self.units = fused_units(self.plan)
        self._recorded = frozenset((*self.sites, *watch))
        self._shapes: dict[tuple[tuple[str, tuple[int, ...]], ...], dict[str, tuple[int | None, ...]]] = {}

    def run(
        self, images: NDArray[np.float32], *, overrides: Mapping[str, Array] = _NO_OVERRIDES
    ) -> Execution:
        """Run on preprocessed images, float32 [N, C, H, W]; see `run_feeds`."""
        ports = self.plan.graph.inputs
        if len(ports) != 1:
            raise BadInputError(
                f"the model has {len(ports)} inputs, allowed one", hint="mixport inspect MODEL.onnx"
            )
        return self.run_feeds({ports[0].name: np.asarray(images, np.float32)}, overrides=overrides)

    def run_feeds(
        self, feeds: Mapping[str, Array], *, overrides: Mapping[str, Array] = _NO_OVERRIDES
    ) -> Execution:
        """Run on inputs by name.

        Args:
            feeds: an array for every graph input, floats or codes.
            overrides: codes to use in place of the computed ones, by site name.

        Raises:
            BadInputError: an input is missing, or an override has the wrong shape.
            UnsupportedModelError: a form that the plan accepted cannot be executed with these shapes, or a
                sum leaves int32.
        """
        missing = [port.name for port in self.plan.graph.inputs if port.name not in feeds]
        if missing:
            raise BadInputError(
                f"no array for input {missing[0]}, got {', '.join(feeds)}", hint="mixport inspect MODEL.onnx"
            )
        values: dict[str, Value] = dict(feeds)
        codes: dict[str, Array] = {name: feeds[name] for name in feeds if name in self._recorded}
        for step in self.plan.steps:
            if step.how == "constant":
                continue
            results = self._execute(step, values, feeds)
            for name, value in zip(step.node.outputs, results, strict=True):
                if name in overrides:
                    value = _override(name, value, overrides[name])
                if name in self._recorded and isinstance(value, np.ndarray):
                    codes[name] = value
                values[name] = value
            for name in step.expiring:
                values.pop(name, None)
        outputs: dict[str, Array | None] = {}
        for port in self.plan.graph.outputs:
            value = self._value(port.name, values)
            outputs[port.name] = None if isinstance(value, Unknown | None) else as_array(value)
        return Execution(codes=codes, outputs=outputs, islands=self.island_names, units=self.units)

    def inferred_shapes(self, input_shape: tuple[int, ...]) -> dict[str, tuple[int | None, ...]]:
        """Shapes of all tensors when the model's only input has this shape."""
        return self._shapes_of({self.plan.graph.inputs[0].name: input_shape})

    def _shapes_of(self, feeds: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int | None, ...]]:
        key = tuple(feeds.items())
        if key not in self._shapes:
            self._shapes[key] = infer_shapes(self.plan.graph.proto, feeds=feeds)
        return self._shapes[key]

    def _value(self, name: str, values: Mapping[str, Value]) -> Value | None:
        if not name:
            return None
        return values[name] if name in values else self.plan.constants[name]

    def _execute(
        self, step: Step, values: Mapping[str, Value], feeds: Mapping[str, Array]
    ) -> tuple[Value, ...]:
        args = [self._value(name, values) for name in step.node.inputs]
        if step.how == "shape":
            return (self._shape(step, args[0], feeds),)
        if step.how == "island" or any(isinstance(arg, Unknown) for arg in args):
            return (UNKNOWN,) * len(step.node.outputs)
        known = [arg for arg in args if not isinstance(arg, Unknown)]
        try:
            return _STEPS[step.how](self._definition, step, known)
        except (ValueError, IndexError, KeyError, TypeError) as error:
            shapes = [getattr(getattr(arg, "codes", arg), "shape", None) for arg in known]
            raise UnsupportedModelError(
                (
                    f"node {step.node.name} ({step.node.op}) cannot be executed on inputs of shapes "
                    f"{shapes}: {error}"
                ),
                hint="mixport inspect MODEL.onnx",
            ) from error

    def _shape(self, step: Step, value: Value | None, feeds: Mapping[str, Array]) -> Array:
        if isinstance(value, Dequantised):
            return shape_of(step.node, value.codes.shape)
        if isinstance(value, np.ndarray):
            return shape_of(step.node, value.shape)
        shape = self._shapes_of({name: tuple(array.shape) for name, array in feeds.items()}).get(
            step.node.inputs[0]
        )
        sizes = () if shape is None else tuple(size for size in shape if size is not None)
        if shape is None or len(sizes) != len(shape):
            raise UnsupportedModelError(
                (
                    f"node {step.node.name} ({step.node.op}): the shape of {step.node.inputs[0]}, behind "
                    "a float island, cannot be inferred"
                ),
                hint="give the model static shapes",
            )
        return shape_of(step.node, sizes)


Known = Sequence["Array | Dequantised | None"]


def _quantise_step(definition: Definition, step: Step, args: Known) -> tuple[Value, ...]:
    x, saturation = args[0], step.saturation
    assert saturation is not None and x is not None
    if isinstance(x, Dequantised) and x.quantisation.per_tensor and saturation.dtype in EIGHT_BIT:
        return (rescale(definition, x, saturation),)
    return (quantise(as_array(x), saturation),)


def _fused_step(definition: Definition, step: Step, args: Known) -> tuple[Value, ...]:
    assert step.kernel is not None
    return (FUSED[step.kernel](definition, step.node, step.saturation, args),)


def _pass_step(_: Definition, step: Step, args: Known) -> tuple[Value, ...]:
    assert args[0] is not None
    return (args[0],)


def _move_step(_: Definition, step: Step, args: Known) -> tuple[Value, ...]:
    data = args[0]
    kernel = MOVES[step.node.op]
    rest = _arrays(args[1:])
    if isinstance(data, Dequantised) and data.quantisation.per_tensor:
        moved = kernel(step.node, [data.codes, *rest])
        return tuple(Dequantised(codes=array, quantisation=data.quantisation) for array in moved)
    return kernel(step.node, [*_arrays([data]), *rest])


def _dequantise_step(_: Definition, step: Step, args: Known) -> tuple[Value, ...]:
    codes = args[0]
    assert step.quantisation is not None and isinstance(codes, np.ndarray)
    return (Dequantised(codes=codes, quantisation=step.quantisation),)


def _function_step(_: Definition, step: Step, args: Known) -> tuple[Value, ...]:
    assert step.function is not None and args[0] is not None
    return (evaluate_function(step.function, as_array(args[0])),)


def _array_step(_: Definition, step: Step, args: Known) -> tuple[Value, ...]:
    op = step.node.op
    kernel = JOINS.get(op) or ELEMENTWISE.get(op) or REDUCTIONS.get(op) or SOURCES[op]
    return kernel(step.node, _arrays(args))


_STEPS: Mapping[str, Callable[[Definition, Step, Known], tuple[Value, ...]]] = MappingProxyType(
    {
        "quantise": _quantise_step,
        "dequantise": _dequantise_step,
        "fused": _fused_step,
        "pass": _pass_step,
        "move": _move_step,
        "join": _array_step,
        "elementwise": _array_step,
        "source": _array_step,
        "function": _function_step,
    }
)


def _arrays(args: Known) -> list[Array | None]:
    return [None if arg is None else as_array(arg) for arg in args]


def _override(name: str, value: Value, given: Array) -> Array:
    if isinstance(value, np.ndarray) and value.shape != given.shape:
        raise BadInputError(
            f"codes given for site {name} have shape {given.shape}, the model gives {value.shape}"
        )
    return given
