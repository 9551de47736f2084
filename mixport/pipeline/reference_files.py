"""What a bundle is compared with, made from the bundle's own model: torch's float export, and
quantize_static's file of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mixport.model.float_model import FloatModel
from mixport.model.request import ModelRequest
from mixport.pipeline import stages
from mixport.pipeline.build_plan import model_request
from mixport.pipeline.keys import model_key
from mixport.pipeline.options.build_options import BuildOptions
from mixport.pipeline.options.trained_input import open_trained
from mixport.pipeline.stages import StageContext, StageLog
from mixport.records.errors import BadInputError, MixportError
from mixport.records.progress import Progress
from mixport.release.bundle import ReleaseBundle, read_golden
from mixport.storage.store import Store

FLOAT, STATIC = "float", "static"
NAMES = (FLOAT, STATIC)
"""What `--against` takes beside a file."""


def reference_files(
    names: Sequence[str],
    *,
    bundle: ReleaseBundle,
    options: BuildOptions,
    cache: Path,
    progress: Progress,
    note: Callable[[str], None],
) -> dict[str, Path]:
    """Make the files, or take them from the cache.

    quantize_static is calibrated on the bundle's golden inputs: latency does not depend on them.

    Args:
        names: of `NAMES`.
        bundle: what a build wrote.
        options: of that build, read from its command line.
        cache: folder of stage results.
        progress: shows bars.
        note: is told what is made, and how long it took.

    Returns:
        an ONNX file for each name.

    Raises:
        BadInputError: the model cannot be made again here, or is another one by now.
        UnsupportedModelError: torch cannot export it, or quantize_static fails on it.
    """
    if not names:
        return {}
    context = StageContext(store=Store(cache), progress=progress, log=StageLog(note))
    model = _same_model(context, model_request(options, trained=open_trained(options)), bundle)
    key = model_key(model)
    found = {FLOAT: stages.float_file(context, model, model_key=key)}
    if STATIC in names:
        found[STATIC] = stages.static_file(context, found[FLOAT], read_golden(bundle).inputs, model_key=key)
    return {name: found[name] for name in names}


def _same_model(context: StageContext, request: ModelRequest, bundle: ReleaseBundle) -> FloatModel:
    own_file = f"or give a file of your own: mixport bench {bundle.path} --against FILE.onnx"
    try:
        model = stages.load(context, request)
    except MixportError as error:
        raise BadInputError(
            f"the float model of {bundle.path} cannot be made again: {error}",
            hint=f"type this in the folder of the build ({bundle.manifest.reproduce}), {own_file}",
        ) from error
    wanted = bundle.manifest.model.sha256
    if model.sha256 != wanted:
        raise BadInputError(
            f"{model.source} has other weights than those that {bundle.path} was built from "
            f"(SHA-256 {model.sha256[:12]}, not {wanted[:12]})",
            hint=f"build it again ({bundle.manifest.reproduce}), {own_file}",
        )
    return model
