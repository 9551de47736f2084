"""Golden vectors: made once from the runtime, checked later by `mixport validate BUNDLE`, or by hand with
numpy and onnxruntime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from mixport.records.errors import BadInputError
from mixport.records.quantized_model import LoweredGraph
from mixport.records.runtime import Runtime, RuntimeAnswer, RuntimeInfo, RuntimeJob
from mixport.records.targets import SessionRules, Target
from mixport.records.validation_report import Divergence, Localisation, RuntimeResult
from mixport.validate.interpreter.graph import Array, Graph, read_graph
from mixport.validate.interpreter.interpreter import Interpreter
from mixport.validate.localise.localise import Evidence, localise
from mixport.validate.run.compare import compare, join
from mixport.validate.run.session import (
    CodeRunner,
    batches,
    open_session,
    runtime_info,
    static_batch,
    with_code_outputs,
)


@dataclass(frozen=True, kw_only=True)
class Recheck:
    """Counts of one runtime, its first divergence in graph order (`expected` is the golden value), and where
    and why that is.
    """

    result: RuntimeResult
    divergence: Divergence | None
    located: Localisation | None


def golden(
    lowered: LoweredGraph, images: NDArray[np.float32], target: Target, *, verified: bool
) -> tuple[dict[str, Array], NDArray[np.float32]]:
    """Codes of every site and the float output: the interpreter's, with the runtime's codes where float
    islands come in.

    Args:
        lowered: the file and its sites.
        images: float32 [N, C, H, W], preprocessed.
        target: gives the session policy.
        verified: validation found the runtime and the interpreter equal on these images; then the runtime,
            which is quicker, speaks for both.

    Returns:
        codes by tensor name, image by image joined along the first axis, and the output.
    """
    interpreter = Interpreter(lowered.model_path, watch=lowered.sites)
    output = interpreter.plan.graph.only_output
    runner = CodeRunner(
        lowered.model_path,
        tuple(dict.fromkeys((*lowered.sites, *interpreter.entry_sites))),
        policy=target.session,
    )
    parts: list[dict[str, Array]] = []
    # One image a run: then a tensor that holds several rows an image, in any order, joins the same way for
    # whoever repeats this.
    for image in batches(images, batch=1, fixed=static_batch(lowered.model_path)):
        part = runner.run(image)
        if not verified:
            execution = interpreter.run(
                image, overrides={name: part[name] for name in interpreter.entry_sites}
            )
            part |= (
                execution.codes if execution.output is None else {**execution.codes, output: execution.output}
            )
        parts.append(part)
    found = {name: np.concatenate([part[name] for part in parts]) for name in (*lowered.sites, output)}
    return {name: found[name] for name in lowered.sites}, found[output]


def recheck(
    model_path: Path,
    golden_inputs: NDArray[np.float32],
    golden_codes: Mapping[str, Array],
    golden_output: NDArray[np.float32],
    policy: SessionRules,
    *,
    runtime: Runtime | None = None,
) -> Recheck:
    """Run a bundle's model on its golden inputs and compare every tensor, with tolerance 0.

    Args:
        model_path: model.onnx.
        golden_inputs: float32 [N, C, H, W].
        golden_codes: codes by tensor name.
        golden_output: float32.
        policy: session policy of the bundle's manifest.
        runtime: who computes; None for the runtime of this process.

    Raises:
        BadInputError: no golden codes, a golden tensor that the model does not have, or a model that this
            process's runtime refuses. Where another runtime refuses the model, every tensor counts as wholly
            different.
        RuntimeUnavailableError: the other runtime does not start or breaks off.
    """
    if not golden_codes:
        raise BadInputError("the bundle has no golden codes", hint="mixport build ... writes them again")
    names = tuple(golden_codes)
    graph = read_graph(model_path)
    source, output = graph.inputs[0].name, graph.only_output
    # One image a run, as the vectors were made: see `golden`.
    feeds = [{source: chunk} for chunk in batches(golden_inputs, batch=1, fixed=static_batch(model_path))]
    jobs = (
        RuntimeJob(
            model=with_code_outputs(model_path, names).SerializeToString(),
            feeds=feeds,
            outputs=(*names, output),
        ),
        RuntimeJob(model=model_path.read_bytes(), feeds=feeds, outputs=(output,)),
    )
    executor = "onnxruntime" if runtime is None else runtime.name
    info, answers = _in_process(jobs, policy) if runtime is None else runtime.run(jobs, policy=policy)
    expected = {**golden_codes, output: golden_output}
    found = _joined(answers[0])
    first = compare(
        expected,
        found,
        order=(*_graph_order(graph, names), output),
        executor=executor,
        inputs="golden inputs",
    )
    plain = compare(
        {output: golden_output},
        _joined(answers[1]),
        order=[output],
        executor=f"{executor}, without code outputs",
        inputs="golden inputs",
    )
    total = join(first, plain)
    result = RuntimeResult(
        name="native" if runtime is None else runtime.name,
        version=f"{info.name} {info.version}",
        cpu=info.cpu,
        tensors=total.tensors,
        values=total.values,
        mismatches=total.mismatches,
    )
    located = (
        None
        if first.first is None
        else _locate(model_path, first.first, feeds, expected, found, answers[0].refused)
    )
    if located is None and plain.first is not None and answers[1].refused:
        # Only the file as it ships was refused: its message must not get lost.
        located = _locate(model_path, plain.first, feeds, expected, {}, answers[1].refused)
    return Recheck(result=result, divergence=total.first, located=located)


def _in_process(
    jobs: Sequence[RuntimeJob], policy: SessionRules
) -> tuple[RuntimeInfo, tuple[RuntimeAnswer, ...]]:
    answers: list[RuntimeAnswer] = []
    for job in jobs:
        session = open_session(onnx.ModelProto.FromString(job.model), policy=policy)
        runs = [
            dict(zip(job.outputs, session.run(list(job.outputs), dict(feeds)), strict=True))
            for feeds in job.feeds
        ]
        answers.append(RuntimeAnswer(runs=tuple(runs)))
    return runtime_info(), tuple(answers)


def _joined(answer: RuntimeAnswer) -> dict[str, Array]:
    """Every tensor, joined along its first axis; nothing where the model was refused, or where runs do not
    fit together.
    """
    joined: dict[str, Array] = {}
    for name in answer.runs[0] if answer.runs else ():
        parts = [run[name] for run in answer.runs]
        if all(
            part.ndim and part.shape[1:] == parts[0].shape[1:] and part.dtype == parts[0].dtype
            for part in parts
        ):
            joined[name] = np.concatenate(parts)
    return joined


def _locate(
    model_path: Path,
    divergence: Divergence,
    feeds: Sequence[Mapping[str, Array]],
    expected: Mapping[str, Array],
    found: Mapping[str, Array],
    refused: str,
) -> Localisation:
    """Place a divergence: the one run that shows it is cut out of the joined tensors."""
    run = 0
    if divergence.index:
        run = divergence.index[0] * len(feeds) // len(expected[divergence.site])

    def part(arrays: Mapping[str, Array]) -> dict[str, Array]:
        return {
            name: array[run * (len(array) // len(feeds)) : (run + 1) * (len(array) // len(feeds))]
            for name, array in arrays.items()
        }

    start = run * (len(expected[divergence.site]) // len(feeds))
    local = replace(
        divergence, index=(divergence.index[0] - start, *divergence.index[1:]) if divergence.index else ()
    )
    interpreter = Interpreter(model_path)
    given = {name: array for name, array in part(expected).items() if name in interpreter.entry_sites}
    evidence = Evidence(
        feeds=feeds[run], expected=part(expected), got=part(found), overrides=given, refused=refused
    )
    return replace(localise(model_path, local, evidence), index=divergence.index)


def _graph_order(graph: Graph, names: tuple[str, ...]) -> tuple[str, ...]:
    position = {name: node.index for name, node in graph.producer.items()}
    return tuple(sorted(names, key=lambda name: position.get(name, 0)))
