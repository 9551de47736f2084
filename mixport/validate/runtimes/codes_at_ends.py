"""Jobs whose models begin and end with codes: an accelerator quantises no floats and gives none, so that the
first QuantizeLinear and the last DequantizeLinear of a file run on the CPU beside it. Here they run on our
own arithmetic, and what is left is one partition or none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from mixport.arithmetic import integer
from mixport.arithmetic.dtypes import STORAGE_RANGE
from mixport.records.runtime import RuntimeAnswer, RuntimeJob

Array = NDArray[np.generic]


@dataclass(frozen=True, kw_only=True)
class _End:
    """A tensor of codes in the place of a float one.

    Attributes:
        codes: its name.
        scale: float32 value.
        zero_point: with the type of the codes.
    """

    codes: str
    scale: np.float32
    zero_point: Array

    def quantise(self, floats: Array) -> Array:
        low, high = STORAGE_RANGE[self.zero_point.dtype.name]
        codes = integer.quantise(
            floats.astype(np.float32),
            scale=self.scale,
            zero_point=int(self.zero_point),
            qmin=low,
            qmax=high,
        )
        return codes.astype(self.zero_point.dtype)

    def dequantise(self, codes: Array) -> Array:
        return integer.dequantise(codes, scale=self.scale, zero_point=int(self.zero_point))


@dataclass(frozen=True, kw_only=True)
class CodedJob:
    """A job with codes at its ends, and the way back.

    Attributes:
        job: to run.
        asked: the job as it was.
        inputs: by float input, what took its place.
        outputs: by float output that was asked for, likewise.
    """

    job: RuntimeJob
    asked: RuntimeJob
    inputs: Mapping[str, _End]
    outputs: Mapping[str, _End]

    def answer(self, got: RuntimeAnswer) -> RuntimeAnswer:
        """What the job that was asked would have been answered."""
        if got.refused:
            return got
        runs: list[Mapping[str, Array]] = []
        for run, feeds in zip(got.runs, self.job.feeds, strict=True):
            known = {**feeds, **run}
            runs.append(
                {
                    name: self.outputs[name].dequantise(known[self.outputs[name].codes])
                    if name in self.outputs
                    else known[name]
                    for name in self.asked.outputs
                }
            )
        return replace(got, runs=tuple(runs))


def codes_at_ends(job: RuntimeJob) -> CodedJob:
    """Take a first QuantizeLinear and a last DequantizeLinear off, where the only reader or the writer of an
    end is one with a constant scale of its own; other ends stay as they are.
    """
    try:
        model = onnx.load_model_from_string(job.model)
    except DecodeError:  # whoever cannot read it says so
        return CodedJob(job=job, asked=job, inputs={}, outputs={})
    graph = model.graph
    constants = {one.name: one for one in graph.initializer}
    inputs = _inputs(graph, constants)
    outputs = {name: end for name, end in _outputs(graph, constants).items() if name in job.outputs}
    taken = {end.codes for end in inputs.values()} | set(outputs)
    kept = [node for node in graph.node if not (set(node.output) & taken)]
    ports = [_port(inputs[one.name], one) if one.name in inputs else one for one in graph.input]
    given = {one.codes for one in inputs.values()}
    wanted = [outputs[name].codes if name in outputs else name for name in job.outputs]
    asked = tuple(name for name in dict.fromkeys(wanted) if name not in given)
    results = {one.name: one for one in graph.output}
    results |= {end.codes: _port(end, results[name]) for name, end in outputs.items() if name in results}
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(kept)
    graph.input.extend(ports)
    graph.output.extend(results[name] for name in asked)
    feeds: Sequence[Mapping[str, Array]] = [
        {
            (inputs[name].codes if name in inputs else name): (
                inputs[name].quantise(array) if name in inputs else array
            )
            for name, array in run.items()
        }
        for run in job.feeds
    ]
    coded = RuntimeJob(model=model.SerializeToString(), feeds=feeds, outputs=asked)
    return CodedJob(job=coded, asked=job, inputs=inputs, outputs=outputs)


def _inputs(graph: onnx.GraphProto, constants: Mapping[str, onnx.TensorProto]) -> dict[str, _End]:
    found: dict[str, _End] = {}
    for port in graph.input:
        readers = [node for node in graph.node if port.name in node.input]
        if len(readers) == 1 and readers[0].op_type == "QuantizeLinear":
            end = _end(readers[0], readers[0].output[0], constants)
            if end is not None:
                found[port.name] = end
    return found


def _outputs(graph: onnx.GraphProto, constants: Mapping[str, onnx.TensorProto]) -> dict[str, _End]:
    found: dict[str, _End] = {}
    for port in graph.output:
        for node in graph.node:
            if port.name in node.output and node.op_type == "DequantizeLinear":
                end = _end(node, node.input[0], constants)
                if end is not None:
                    found[port.name] = end
    return found


def _end(node: onnx.NodeProto, codes: str, constants: Mapping[str, onnx.TensorProto]) -> _End | None:
    if len(node.input) < 3 or not {node.input[1], node.input[2]} <= constants.keys():
        return None
    scale, zero_point = (numpy_helper.to_array(constants[name]) for name in node.input[1:3])
    if scale.size != 1 or zero_point.size != 1 or zero_point.dtype.name not in STORAGE_RANGE:
        return None
    return _End(codes=codes, scale=np.float32(scale.reshape(-1)[0]), zero_point=zero_point.reshape(-1)[0])


def _port(end: _End, like: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """The port with the type and the name of the codes, and its own shape."""
    made = onnx.ValueInfoProto()
    made.CopyFrom(like)
    made.name = end.codes
    made.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(end.zero_point.dtype)
    return made
