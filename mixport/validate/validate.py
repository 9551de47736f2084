"""Validation of a lowered file: every code compared between the interpreter, the runtime and the simulation,
with tolerance 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mixport.records.errors import BadInputError, BadOptionError
from mixport.records.graph_facts import Prover
from mixport.records.progress import Progress, SilentProgress
from mixport.records.quantized_model import LoweredGraph
from mixport.records.runtime import Runtime
from mixport.records.simulation import Simulation
from mixport.records.targets import Target
from mixport.records.validation_report import RuntimeResult, ValidationReport
from mixport.validate.claim import claim_of
from mixport.validate.crafted.check_units import Prepared, check_prepared, prepare_units
from mixport.validate.crafted.images import adversarial_images
from mixport.validate.facts import facts_of
from mixport.validate.other_runtimes import Elsewhere, compare_elsewhere
from mixport.validate.run.compare import Comparison, join
from mixport.validate.run.executors import Compared, Executors, simulation_version
from mixport.validate.run.fusion_audit import audit
from mixport.validate.run.session import batches, runtime_info

ELSEWHERE_IMAGES, ELSEWHERE_BATCH = 32, 4
"""Images that every further runtime gets, and how many at once: WebAssembly has 4 GB for a batch with all its
codes.
"""


def validate(
    lowered: LoweredGraph,
    images: NDArray[np.float32],
    target: Target,
    *,
    simulation: Simulation | None = None,
    progress: Progress | None = None,
    runtimes: Sequence[Runtime] = (),
    batch: int = 32,
    prove: Prover | None = None,
) -> ValidationReport:
    """Compare every code tensor of a lowered file between independent executors, and check each operator on
    adversarial codes.

    Args:
        lowered: the file and its sites.
        images: float32 [N, C, H, W], preprocessed.
        target: gives the session policy.
        simulation: the quantiser's executable view, compared too where given.
        progress: told about images and operators as they are done.
        runtimes: further ones, besides the runtime of this process: each gets the first images, the
            adversarial images and all crafted operator checks in one call.
        batch: images a run, where the model's batch is symbolic.
        prove: static proofs over the file; the report has none without it.

    Raises:
        BadOptionError: a batch below 1.
        RuntimeUnavailableError: a further runtime does not start or breaks off.
        BadInputError: images of the wrong shape or type, or a file that the runtime refuses.
        InvariantError: a site of `lowered` that the interpreter does not find in the file.
    """
    _check_options(images, batch)
    bar = progress or SilentProgress()
    executors = Executors(lowered, target.session, simulation=simulation)
    shape = (images.shape[1], images.shape[2], images.shape[3])
    shared = min(len(images), ELSEWHERE_IMAGES) if runtimes else 0
    shared -= shared % (executors.fixed_batch or 1)
    parts: list[Compared] = []
    with bar.track("comparing codes", total=len(images)) as advance:
        for start, some, size in (
            (0, images[:shared], min(batch, ELSEWHERE_BATCH)),
            (shared, images[shared:], batch),
        ):
            for chunk in batches(some, batch=size, fixed=executors.fixed_batch):
                parts.append(executors.compare(chunk, inputs="images", offset=start))
                start += len(chunk)
                advance(len(chunk))
                if not runtimes or start > shared:
                    parts[-1] = replace(parts[-1], batch=None)
    hostile = adversarial_images(executors.interpreter.plan, shape=shape, multiple=executors.fixed_batch or 1)
    size = min(batch, ELSEWHERE_BATCH) if runtimes else batch
    hostile_parts = [
        executors.compare(chunk, inputs="adversarial images")
        for chunk in batches(hostile, batch=size, fixed=executors.fixed_batch)
    ]
    parts += hostile_parts
    native, simulated = join(*(part.native for part in parts)), join(*(part.simulated for part in parts))
    floats = join(*(part.floats for part in parts))
    prepared = prepare_units(
        lowered.model_path, input_shape=(executors.fixed_batch or 1, *shape), progress=bar
    )
    checks = check_prepared(prepared, policy=target.session)
    others = _compare_others(runtimes, lowered, executors, parts, prepared, target, bar)
    found = audit(lowered.model_path, policy=target.session, sites=lowered.sites)
    facts = facts_of(
        executors.interpreter,
        input_shape=(1, *shape),
        pair_limit=target.accumulator.pair_limit,
        portable=target.portable,
    )
    info = runtime_info()
    results = [_result("native", f"{info.name} {info.version}", info.cpu, native)]
    if simulation is not None:
        results.append(_result("simulation", simulation_version(), "", simulated))
    results += [other.result for other in others]
    divergences = tuple(
        d
        for d in (
            native.first,
            simulated.first,
            floats.first,
            checks.first,
            *(other.first for other in others),
        )
        if d is not None
    )
    mismatches = sum(result.mismatches for result in results) + checks.mismatches + floats.mismatches
    hostile_total = join(*(part.native for part in hostile_parts))
    own = next((part.located for part in parts if part.located is not None), None) or checks.located
    image_count = {
        "sites": hostile_total.tensors,
        "values": hostile_total.values,
        "mismatches": hostile_total.mismatches,
    }
    islands = executors.interpreter.island_names
    return ValidationReport(
        verdict="mismatch" if mismatches else "exact",
        claim=claim_of(
            native,
            simulation is not None,
            checks,
            found,
            info,
            target.session,
            islands,
            divergences,
            [other.result for other in others],
        ),
        session_policy={
            "optimization_level": target.session.optimization_level,
            "threads": target.session.threads,
            "config": dict(target.session.config),
        },
        runtimes=tuple(results),
        divergences=divergences,
        float_islands=islands,
        site_checks={**checks.counts, **_float_checks(floats), "model: adversarial images": image_count},
        audit=found,
        proofs={} if prove is None else prove(facts),
        localisations=tuple(one for one in (own, *(other.located for other in others)) if one is not None),
        entry_sites=executors.interpreter.entry_sites,
    )


def _float_checks(floats: Comparison) -> dict[str, dict[str, int]]:
    if not floats.tensors:
        return {}
    counts = {"sites": floats.tensors, "values": floats.values, "mismatches": floats.mismatches}
    return {"float operators: islands, and the output unfused": counts}


def _compare_others(
    runtimes: Sequence[Runtime],
    lowered: LoweredGraph,
    executors: Executors,
    parts: Sequence[Compared],
    prepared: Prepared,
    target: Target,
    bar: Progress,
) -> list[Elsewhere]:
    """The further runtimes, on the batches that were kept for them."""
    if not runtimes:
        return []
    kept = [part.batch for part in parts if part.batch is not None]
    found: list[Elsewhere] = []
    with bar.track("other runtimes", total=len(runtimes), unit="runtimes") as advance:
        for runtime in runtimes:
            found.append(
                compare_elsewhere(
                    runtime,
                    lowered.model_path,
                    executors,
                    batches=kept,
                    units=prepared[0],
                    policy=target.session,
                )
            )
            advance(1)
    return found


def _check_options(images: NDArray[np.float32], batch: int) -> None:
    if batch < 1:
        raise BadOptionError(f"batch is {batch}, allowed 1 or more", hint="use batch=32")
    if images.ndim != 4 or images.dtype != np.float32 or len(images) == 0:
        raise BadInputError(
            f"images are {images.dtype} of shape {images.shape}, allowed float32 [N, C, H, W] with N >= 1",
            hint="preprocess the images as the model's recipe says",
        )


def _result(name: str, version: str, cpu: str, comparison: Comparison) -> RuntimeResult:
    return RuntimeResult(
        name=name,
        version=version,
        cpu=cpu,
        tensors=comparison.tensors,
        values=comparison.values,
        mismatches=comparison.mismatches,
    )
