"""Hardware-exact simulation: the fake-quantised torch program run on integers, so that its codes equal the
runtime's.

Convolutions, linear layers and products sum integer values, exactly: in float32 while every reachable sum
stays below 2^24, in float64 above. Their result stays an integer until a quantiser reads it, and is
requantised there in float32 as mixport.arithmetic.integer.requantise does. Between quantisers, elementwise
float operators are IEEE and need no special care.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.fx.node import map_aggregate, map_arg

from mixport.arithmetic.quant_params import QuantParams
from mixport.arithmetic.torch_ops import NAMESPACE, OPS
from mixport.model.programs.fx_graph import aten, operator_of, tensor_arg
from mixport.quantize.emit.insert import code_params
from mixport.records.quantized_model import QuantizedModel
from mixport.records.simulation import FloatEvaluation, SimulatedRun

_DTYPES = {"uint8": np.uint8, "int16": np.int16, "int8": np.int8}
_LAYERS = {aten.conv1d.default, aten.conv2d.default, aten.linear.default}
_PRODUCTS = {aten.matmul.default, aten.bmm.default}


@dataclass(frozen=True, kw_only=True)
class _Sum:
    """Integer sums that no quantiser has read yet.

    Attributes:
        acc: integer-valued float tensor.
        scale: float32 real value of 1, broadcastable to acc; what a float reader multiplies by.
        multiplier: float32 factor for an output scale.
        zero_point_first: the zero point is added before rounding (QLinearMul).
    """

    acc: Tensor
    scale: Tensor
    multiplier: Callable[[Tensor], Tensor]
    zero_point_first: bool = False

    def real(self) -> Tensor:
        """What a float reader sees: float32, of acc's shape."""
        return self.acc.to(torch.float32) * self.scale


@dataclass(frozen=True, kw_only=True)
class _Weight:
    codes: Tensor
    scale: Tensor


class ExactProgram(fx.Interpreter):
    """Interprets the fake-quantised graph on integers and keeps every site's codes."""

    def __init__(self, graph: fx.GraphModule, doubled: frozenset[fx.Node]) -> None:
        """Run `graph`; float operators in `doubled` are evaluated in float64 besides."""
        super().__init__(graph)
        self.doubled = doubled
        self.wide: dict[fx.Node, Any] = {}
        self.floats: dict[str, FloatEvaluation] = {}
        self.params = {node: code_params(node) for node in graph.graph.nodes if node.op == "call_function"}
        self.codes: dict[str, NDArray[Any]] = {}
        self.overrides: Mapping[str, NDArray[Any]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Value of one node: sums and weights stay integers until a quantiser or a float operator reads
        them.
        """
        if n.op != "call_function":
            return super().run_node(n)
        with self._set_current_node(n):
            args, kwargs = self.fetch_args_kwargs_from_env(n)
        if n.target is OPS.dequantize_weight.default:
            return _Weight(codes=args[0], scale=args[1])
        if n.target is OPS.quantize_dequantize.default:
            if tensor_arg(n, 0) in self.wide:
                self._evaluate_site(tensor_arg(n, 0), *args)
            return self._quantise(*args)
        if n.target in _LAYERS and isinstance(args[1], _Weight):
            return self._layer(n, args)
        if n.target in _PRODUCTS and self._coded(n):
            return self._product(n, args)
        if n.target is OPS.global_average_pool.default and self._coded(n):
            return self._average(n, args)
        if n.target is aten.mul.Tensor and self._coded(n) and len(n.all_input_nodes) == 2:
            return self._multiply(n, args)
        args, kwargs = map_aggregate((args, kwargs), _real)
        value = operator_of(n)(*args, **kwargs)
        if n in self.doubled:
            self.wide[n] = self._in_float64(n, value)
        for spent in self.user_to_last_uses.get(n, ()):
            self.wide.pop(spent, None)
        if n.target is OPS.lookup.default:
            found = self.params[n]
            assert found is not None
            value = self._record(
                str(args[2]),
                value,
                scale=found.scale,
                zero_point=found.zero_point,
                dtype=_DTYPES[found.storage],
            )
        return value

    def _in_float64(self, n: fx.Node, value: Any) -> Any:
        """The same operator once more in float64; the float32 value where it takes no other type."""

        def widened(source: fx.Node) -> Any:
            return map_aggregate(self.wide.get(source, self.env[source]), _double)

        try:
            return operator_of(n)(*map_arg(n.args, widened), **map_arg(n.kwargs, widened))
        except (RuntimeError, TypeError, NotImplementedError):
            return map_aggregate(value, _double)

    def _evaluate_site(
        self,
        source: fx.Node,
        x: Tensor,
        site: str,
        scale: float,
        zero_point: int,
        qmin: int,
        qmax: int,
        _: str,
    ) -> None:
        step, wide = _float32(scale), self.wide[source]
        narrow_codes = torch.clamp(torch.round(x / step) + zero_point, qmin, qmax).double()
        finite = torch.isfinite(x) & torch.isfinite(wide) | (x == wide)
        # Beyond the range of codes both saturate, however far apart they are.
        low, high = (qmin - zero_point - 1) * float(step), (qmax - zero_point + 1) * float(step)
        apart = (x.double().clamp(low, high) - wide.clamp(low, high)).abs()
        self.floats[site] = _evaluation(narrow_codes, apart / float(step), finite)

    def evaluate_output(self, node: fx.Node, value: Tensor, *, name: str) -> None:
        """Note the float output: its error is that of the float island that it lies behind, if any."""
        wide = self.wide.get(node, value.double())
        finite = torch.isfinite(value) & torch.isfinite(wide)
        self.floats[name] = _evaluation(value.double(), (value.double() - wide).abs(), finite)

    def _coded(self, n: fx.Node) -> bool:
        return all(
            self.params.get(source) is not None for source in n.args[:2] if isinstance(source, fx.Node)
        )

    def _centred(self, node: fx.Node, value: Any) -> tuple[Tensor, QuantParams]:
        params = self.params[node]
        assert params is not None
        return torch.round(_real(value) / _float32(params.scale)), params

    def _layer(self, n: fx.Node, args: tuple[Any, ...]) -> _Sum:
        x, params = self._centred(tensor_arg(n, 0), args[0])
        weight, bias = args[1], args[2] if len(args) > 2 else None
        dtype = self._sum_dtype(weight.codes, bias.codes if bias is not None else None, params)
        rest = args[3:]
        acc: Tensor = operator_of(n)(
            x.to(dtype), weight.codes.to(dtype), bias.codes.to(dtype) if bias is not None else None, *rest
        )
        channels = (1, -1) + (1,) * (acc.dim() - 2)
        scale = (_float32(params.scale) * weight.scale).view(channels)
        return _Sum(acc=acc, scale=scale, multiplier=lambda y: scale / y)

    @staticmethod
    def _sum_dtype(codes: Tensor, bias: Tensor | None, params: QuantParams) -> torch.dtype:
        largest = max(abs(params.qmin - params.zero_point), abs(params.qmax - params.zero_point))
        bound = codes.abs().to(torch.int64).flatten(1).sum(1) * largest
        if bias is not None:
            bound = bound + bias.abs().to(torch.int64)
        return torch.float32 if int(bound.max()) < 1 << 24 else torch.float64

    def _product(self, n: fx.Node, args: tuple[Any, ...]) -> _Sum:
        a, a_params = self._centred(tensor_arg(n, 0), args[0])
        b, b_params = self._centred(tensor_arg(n, 1), args[1])
        acc: Tensor = operator_of(n)(a.double(), b.double())
        scale = _float32(a_params.scale) * _float32(b_params.scale)
        return _Sum(acc=acc, scale=scale, multiplier=lambda y: scale / y)

    def _average(self, n: fx.Node, args: tuple[Any, ...]) -> _Sum:
        x, params = self._centred(tensor_arg(n, 0), args[0])
        count = _float32(float(x.shape[-1] * x.shape[-2]))
        x_scale = _float32(params.scale)
        acc = x.double().sum((-2, -1), keepdim=True)
        return _Sum(acc=acc, scale=x_scale / count, multiplier=lambda y: x_scale / (y * count))

    def _multiply(self, n: fx.Node, args: tuple[Any, ...]) -> _Sum:
        a, a_params = self._centred(tensor_arg(n, 0), args[0])
        b, b_params = self._centred(tensor_arg(n, 1), args[1])
        scale = _float32(a_params.scale) * _float32(b_params.scale)
        return _Sum(acc=a * b, scale=scale, multiplier=lambda y: scale / y, zero_point_first=True)

    def _quantise(
        self, x: Any, site: str, scale: float, zero_point: int, qmin: int, qmax: int, storage: str
    ) -> Tensor:
        step = _float32(scale)
        if storage == "int16":
            x = _real(x)  # integer kernels give 8-bit codes or floats: 16-bit codes are made from the floats
        if isinstance(x, _Sum):
            real_codes = x.acc.to(torch.float32) * x.multiplier(step)
            first = float(zero_point) if x.zero_point_first else 0.0
            rounded = torch.round(real_codes + first) + (zero_point - first)
        else:
            rounded = torch.round(x / step) + zero_point
        centred = torch.clamp(rounded, qmin, qmax) - zero_point
        return self._record(site, centred * step, scale=scale, zero_point=zero_point, dtype=_DTYPES[storage])

    def _record(self, site: str, value: Tensor, *, scale: float, zero_point: int, dtype: Any) -> Tensor:
        override = self.overrides.get(site)
        if override is not None:
            own = torch.round(value / _float32(scale)).double() + zero_point
            self.floats.setdefault(site, FloatEvaluation(values=own.numpy(), error=0.0))
            value = (torch.as_tensor(override.astype(np.float32)) - zero_point) * _float32(scale)
        self.codes[site] = (torch.round(value / _float32(scale)) + zero_point).numpy().astype(dtype)
        return value


class ProgramSimulation:
    """mixport.records.simulation.Simulation on a saved program."""

    def __init__(self, graph: fx.GraphModule, *, batch: int | None, output: str) -> None:
        self.graph, self.batch, self.name = graph, batch, output
        self.output = _output_node(graph)

    def simulate(self, images: NDArray[np.float32], *, overrides: Mapping[str, NDArray[Any]]) -> SimulatedRun:
        """Codes of every site, the float `output`, and the float operators; see
        mixport.records.simulation.
        """
        step = self.batch or len(images)
        doubled = _float_operators(self.graph, frozenset(overrides))
        codes: list[Mapping[str, NDArray[Any]]] = []
        floats: list[Mapping[str, FloatEvaluation]] = []
        for start in range(0, len(images), step):
            program = ExactProgram(self.graph, doubled)
            program.overrides = (
                overrides if step >= len(images) else _rows(overrides, start, step, of=len(images))
            )
            with torch.no_grad():
                result = program.run(torch.as_tensor(np.ascontiguousarray(images[start : start + step])))
            output: Tensor = _real(_only_output(result))
            program.evaluate_output(self.output, output, name=self.name)
            codes.append({**program.codes, self.name: output.numpy()})
            floats.append(program.floats)
        return SimulatedRun(
            codes={name: np.concatenate([part[name] for part in codes]) for name in codes[0]},
            floats={name: _joined([part[name] for part in floats]) for name in floats[0]},
        )


def _rows(codes: Mapping[str, NDArray[Any]], start: int, count: int, *, of: int) -> dict[str, NDArray[Any]]:
    """Rows of some images out of `of`: a tensor may hold several rows an image (windows, tokens of a
    patch).
    """
    each = {name: len(values) // of for name, values in codes.items()}
    return {name: values[start * each[name] : (start + count) * each[name]] for name, values in codes.items()}


def open_simulation(quantized: QuantizedModel) -> ProgramSimulation:
    """Load the program of a quantised model for hardware-exact simulation."""
    graph = torch.export.load(quantized.program_path).module(check_guards=False)
    return ProgramSimulation(
        graph,
        batch=None if quantized.dynamic_batch else 1,
        output=quantized.signature.logits.name,
    )


def _evaluation(values: Tensor, apart: Tensor, finite: Tensor) -> FloatEvaluation:
    """Values where both precisions are finite, and the largest distance there."""
    seen = apart[finite]
    return FloatEvaluation(
        values=torch.where(finite, values, torch.nan).numpy(),
        error=float(seen.max()) if seen.numel() else 0.0,
    )


def _joined(parts: Sequence[FloatEvaluation]) -> FloatEvaluation:
    return FloatEvaluation(
        values=np.concatenate([part.values for part in parts]), error=max(part.error for part in parts)
    )


def _float_operators(graph: fx.GraphModule, sites: frozenset[str]) -> frozenset[fx.Node]:
    """Operators between the last codes, or exact sums, and the quantisers of some sites, or the output."""
    waiting = [_output_node(graph)]
    waiting += [
        tensor_arg(n, 0)
        for n in graph.graph.nodes
        if n.target is OPS.quantize_dequantize.default and str(n.args[1]) in sites
    ]
    found: set[fx.Node] = set()
    while waiting:
        node = waiting.pop()
        if node.op == "call_function" and node not in found and str(node.target).split(".")[0] != NAMESPACE:
            found.add(node)
            waiting += node.all_input_nodes
    return frozenset(found)


def _output_node(graph: fx.GraphModule) -> fx.Node:
    """The node of the one tensor that the program returns."""
    (result,) = (node for node in graph.graph.nodes if node.op == "output")
    return result.all_input_nodes[0]


def _double(value: Any) -> Any:
    """A sum or a float32 tensor in float64; anything else unchanged."""
    value = _real(value)
    return value.double() if isinstance(value, Tensor) and value.dtype is torch.float32 else value


def _float32(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def _real(value: Any) -> Any:
    """A sum as the float tensor that it stands for; anything else unchanged."""
    return value.real() if isinstance(value, _Sum) else value


def _only_output(output: Any) -> Any:
    """The one tensor of a program: torch.export returns a tuple."""
    if isinstance(output, (tuple, list)):
        return cast("tuple[Any, ...]", output)[0]
    return output
