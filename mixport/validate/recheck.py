"""Golden vectors: made once from the runtime, checked later by `mixport validate BUNDLE`, or by hand with numpy and onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mixport.artifacts import Divergence, LoweredGraph, RuntimeResult
from mixport.errors import BadInputError
from mixport.targets import SessionRules, Target
from mixport.validate.compare import compare, join
from mixport.validate.executors import OUTPUT
from mixport.validate.graph import Array, read_graph
from mixport.validate.session import batches, open_session, run_codes, runtime_info, static_batch


def golden(lowered: LoweredGraph, images: NDArray[np.float32], target: Target) -> tuple[dict[str, Array], NDArray[np.float32]]:
    """Codes of every site and the float output, from the runtime at the target's session policy.

    Args:
        lowered: the file and its sites.
        images: float32 [N, C, H, W], preprocessed.
        target: gives the session policy.

    Returns:
        codes by tensor name, image by image joined along the first axis, and the output.
    """
    # One image a run: then a tensor that holds several rows an image, in any order, joins the same way for whoever repeats this.
    found = run_codes(lowered.model_path, images, lowered.sites, target.session, batch=1)
    return {name: found[name] for name in lowered.sites}, found[OUTPUT]


def recheck(
    model_path: Path,
    golden_inputs: NDArray[np.float32],
    golden_codes: Mapping[str, Array],
    golden_output: NDArray[np.float32],
    policy: SessionRules,
) -> tuple[RuntimeResult, Divergence | None]:
    """Run a bundle's model on its golden inputs and compare every tensor, with tolerance 0.

    Args:
        model_path: model.onnx.
        golden_inputs: float32 [N, C, H, W].
        golden_codes: codes by tensor name.
        golden_output: float32.
        policy: session policy of the bundle's manifest.

    Returns:
        the counts, and the first divergence in graph order (`expected` is the golden value).

    Raises:
        BadInputError: no golden codes, a golden tensor that the model does not have, or a model that the runtime refuses.
    """
    if not golden_codes:
        raise BadInputError("the bundle has no golden codes", hint="mixport build ... writes them again")
    names = tuple(golden_codes)
    found = run_codes(model_path, golden_inputs, names, policy, batch=1)
    expected = {**golden_codes, OUTPUT: golden_output}
    first = compare(expected, found, order=(*_graph_order(model_path, names), OUTPUT), executor="onnxruntime", inputs="golden inputs")
    session = open_session(model_path, policy=policy)
    name = session.get_inputs()[0].name
    chunks = batches(golden_inputs, batch=1, fixed=static_batch(model_path))
    output = np.concatenate([session.run([OUTPUT], {name: chunk})[0] for chunk in chunks])
    plain = compare(
        {OUTPUT: golden_output}, {OUTPUT: output}, order=[OUTPUT], executor="onnxruntime, without code outputs", inputs="golden inputs"
    )
    total, info = join(first, plain), runtime_info()
    result = RuntimeResult(
        name="native",
        version=f"{info.name} {info.version}",
        cpu=info.cpu,
        tensors=total.tensors,
        values=total.values,
        mismatches=total.mismatches,
    )
    return result, total.first


def _graph_order(model_path: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    position = {name: node.index for name, node in read_graph(model_path).producer.items()}
    return tuple(sorted(names, key=lambda name: position.get(name, 0)))
