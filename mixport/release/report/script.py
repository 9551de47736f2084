"""The short script with which anybody repeats the comparison, without mixport."""

from __future__ import annotations

from mixport.records.errors import InvariantError
from mixport.release.validation_entries import SessionPolicy

_LEVELS = {
    "disabled": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}


def recheck_script(policy: SessionPolicy) -> str:
    """Python that compares every golden code with ONNX Runtime under the claim's session policy; run inside
    the bundle.

    It needs numpy, onnx and onnxruntime, prints the number of mismatches, and exits with 1 where there are
    any.
    """
    if policy.optimization_level not in _LEVELS:
        raise InvariantError(
            f"optimization level {policy.optimization_level!r}, allowed {', '.join(_LEVELS)}"
        )
    entries = [
        f"options.add_session_config_entry({key!r}, {value!r})"
        for key, value in sorted(policy.config.items())
    ]
    lines = [
        "import numpy as np, onnx, onnxruntime as ort",
        "",
        'model, codes = onnx.load("model.onnx"), np.load("golden/codes.npz")',
        "for name in codes.files:",
        "    kind = onnx.helper.np_dtype_to_tensor_dtype(codes[name].dtype)",
        "    model.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))",
        "options = ort.SessionOptions()",
        f"options.graph_optimization_level = ort.GraphOptimizationLevel.{_LEVELS[policy.optimization_level]}",
        f"options.intra_op_num_threads = {policy.threads}",
        *entries,
        (
            "session = ort.InferenceSession(model.SerializeToString(), options, "
            'providers=["CPUExecutionProvider"])'
        ),
        'images = np.load("golden/inputs.npz")["input"]',
        'parts = [session.run(codes.files, {"input": images[i : i + 1]}) for i in range(len(images))]',
        "got = [np.concatenate(values) for values in zip(*parts)]",
        "mismatches = sum(int((codes[name] != values).sum()) for name, values in zip(codes.files, got))",
        'print(len(codes.files), "tensors,", mismatches, "mismatches")',
        "raise SystemExit(mismatches > 0)",
    ]
    return "\n".join(lines) + "\n"
