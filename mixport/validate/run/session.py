"""ONNX Runtime sessions at a target's session policy, and the codes that the runtime itself computes."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from mixport.records.errors import BadInputError, UnsupportedModelError
from mixport.records.machine import cpu_name, vector_features
from mixport.records.runtime import RuntimeInfo
from mixport.records.targets import SessionRules
from mixport.validate.interpreter.graph import Array, load_model
from mixport.validate.interpreter.interpreter import Interpreter

_ort: Any = onnxruntime

_LEVELS: Mapping[str, str] = MappingProxyType(
    {
        "disabled": "ORT_DISABLE_ALL",
        "basic": "ORT_ENABLE_BASIC",
        "extended": "ORT_ENABLE_EXTENDED",
        "all": "ORT_ENABLE_ALL",
    }
)

_LOG_ERRORS_ONLY = 3


def runtime_info() -> RuntimeInfo:
    """The native runtime of this machine."""
    parts = dict.fromkeys((platform.machine(), cpu_name(), *vector_features()))
    return RuntimeInfo(
        name="onnxruntime", version=str(_ort.__version__), cpu=" ".join(part for part in parts if part)
    )


def open_session(
    model: Path | str | onnx.ModelProto,
    *,
    policy: SessionRules,
    optimized_path: Path | None = None,
    profile_prefix: Path | None = None,
) -> Any:
    """Open a CPU session.

    Args:
        model: a file, or a model in memory.
        policy: optimisation level, threads and config entries.
        optimized_path: where the runtime writes its optimised graph.
        profile_prefix: how the file begins to which the runtime's own profiler writes; None leaves it off.

    Raises:
        BadInputError: the runtime refuses the model.
    """
    options = _ort.SessionOptions()
    options.graph_optimization_level = getattr(
        _ort.GraphOptimizationLevel, _LEVELS[policy.optimization_level]
    )
    options.intra_op_num_threads = policy.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _LOG_ERRORS_ONLY
    if optimized_path is not None:
        options.optimized_model_filepath = str(optimized_path)
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_prefix)
    for key, value in policy.config.items():
        options.add_session_config_entry(key, value)
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    try:
        return _ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common public base
        raise BadInputError(
            f"onnxruntime {_ort.__version__} refuses the model: {error}", hint="mixport inspect MODEL.onnx"
        ) from error


def with_code_outputs(model: Path | str | onnx.ModelProto, sites: Sequence[str]) -> onnx.ModelProto:
    """The same model with code tensors as further graph outputs.

    Raises:
        BadInputError: a site is not a code tensor of the model.
    """
    interpreter = Interpreter(model)
    tensors = interpreter.plan.tensors
    proto = onnx.ModelProto()
    proto.CopyFrom(load_model(model))
    existing = {value.name for value in proto.graph.output}
    for name in sites:
        info = tensors.get(name)
        if info is None or info.dtype is None or info.kind != "codes":
            raise BadInputError(
                f"{name} is not a code tensor of the model, known: {', '.join(interpreter.sites[:8])} ...",
                hint="mixport inspect MODEL.onnx",
            )
        if name not in existing:
            proto.graph.output.append(
                onnx.helper.make_tensor_value_info(
                    name, onnx.helper.np_dtype_to_tensor_dtype(info.dtype), None
                )
            )
    return proto


def static_batch(model: Path | str | onnx.ModelProto) -> int | None:
    """The fixed batch size of the first input, None where it is symbolic."""
    initializers = {i.name for i in load_model(model).graph.initializer}
    for value in load_model(model).graph.input:
        if value.name not in initializers:
            dims = value.type.tensor_type.shape.dim
            return dims[0].dim_value if len(dims) and dims[0].HasField("dim_value") else None
    return None


def batches(images: NDArray[np.float32], *, batch: int, fixed: int | None) -> Iterator[NDArray[np.float32]]:
    """Cut images into batches of the model's fixed size, or of at most `batch`.

    Raises:
        BadInputError: the images do not fill whole batches of a fixed size.
    """
    size = fixed or batch
    if fixed and images.shape[0] % fixed:
        raise BadInputError(
            f"{images.shape[0]} images do not fill batches of {fixed}, the model's fixed batch",
            hint="give a multiple of it",
        )
    for start in range(0, images.shape[0], size):
        yield images[start : start + size]


class CodeRunner:
    """A session that gives the codes of every site, and the model's outputs."""

    def __init__(
        self, model: Path | str | onnx.ModelProto, sites: Sequence[str], *, policy: SessionRules
    ) -> None:
        """Open the instrumented model."""
        self._session = open_session(with_code_outputs(model, sites), policy=policy)
        self._input: str = self._session.get_inputs()[0].name
        self._outputs: list[str] = [output.name for output in self._session.get_outputs()]

    def run(self, images: NDArray[np.float32]) -> dict[str, Array]:
        """Every site and every output, for one batch.

        Raises:
            UnsupportedModelError: the runtime has no kernel for a form of a float operator (Resize with cubic
                weights that shrinks).
        """
        try:
            arrays = self._session.run(self._outputs, {self._input: images})
        except Exception as error:  # ONNX Runtime's exceptions have no common public base
            raise UnsupportedModelError(
                f"onnxruntime {_ort.__version__} cannot run the model: {error}",
                hint="replace the operator that it names in the model",
            ) from error
        return dict(zip(self._outputs, arrays, strict=True))


def run_codes(
    model_path: Path | str | onnx.ModelProto,
    images: NDArray[np.float32],
    sites: Sequence[str],
    policy: SessionRules,
    *,
    batch: int = 32,
) -> dict[str, Array]:
    """Codes of all sites and the outputs, for any number of images, joined along the first axis.

    Args:
        model_path: the file.
        images: float32 [N, C, H, W], preprocessed.
        sites: code tensors to return.
        policy: session policy.
        batch: images a run where the model's batch is symbolic.
    """
    runner = CodeRunner(model_path, sites, policy=policy)
    parts = [runner.run(chunk) for chunk in batches(images, batch=batch, fixed=static_batch(model_path))]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
