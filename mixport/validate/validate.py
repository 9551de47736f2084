"""Validation of a lowered file: every code compared between the interpreter, the runtime and the simulation, with tolerance 0."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mixport.artifacts import LoweredGraph, RuntimeResult, Simulation, ValidationReport
from mixport.errors import BadInputError, BadOptionError
from mixport.file_facts import Prover
from mixport.progress import Progress, SilentProgress
from mixport.targets import Target
from mixport.validate.adversarial import check_sites
from mixport.validate.audit import audit
from mixport.validate.claim import claim_of
from mixport.validate.compare import Comparison, join
from mixport.validate.executors import Executors, simulation_version
from mixport.validate.images import adversarial_images
from mixport.validate.layers import facts_of
from mixport.validate.session import batches, runtime_info

RUNTIMES = ("native",)
"""Runtimes that can validate today."""


def validate(
    lowered: LoweredGraph,
    images: NDArray[np.float32],
    target: Target,
    *,
    simulation: Simulation | None = None,
    progress: Progress | None = None,
    runtimes: Sequence[str] = ("native",),
    batch: int = 32,
    prove: Prover | None = None,
) -> ValidationReport:
    """Compare every code tensor of a lowered file between independent executors, and check each operator on adversarial codes.

    Args:
        lowered: the file and its sites.
        images: float32 [N, C, H, W], preprocessed.
        target: gives the session policy.
        simulation: the quantiser's executable view, compared too where given.
        progress: told about images and operators as they are done.
        runtimes: names of runtimes; today `native` only.
        batch: images a run, where the model's batch is symbolic.
        prove: static proofs over the file; the report has none without it.

    Raises:
        BadOptionError: a runtime that does not exist, or a batch below 1.
        BadInputError: images of the wrong shape or type, or a file that the runtime refuses.
        InvariantError: a site of `lowered` that the interpreter does not find in the file.
    """
    _check_options(images, runtimes, batch)
    bar = progress or SilentProgress()
    executors = Executors(lowered, target.session, simulation=simulation)
    with bar.track("comparing codes", total=len(images)) as advance:
        parts: list[tuple[Comparison, Comparison]] = []
        done = 0
        for chunk in batches(images, batch=batch, fixed=executors.fixed_batch):
            parts.append(executors.compare(chunk, inputs="images", offset=done))
            done += len(chunk)
            advance(len(chunk))
    shape = (images.shape[1], images.shape[2], images.shape[3])
    hostile = adversarial_images(executors.interpreter.plan, shape=shape, multiple=executors.fixed_batch or 1)
    hostile_parts = [
        executors.compare(chunk, inputs="adversarial images") for chunk in batches(hostile, batch=batch, fixed=executors.fixed_batch)
    ]
    parts += hostile_parts
    native, simulated = join(*(part[0] for part in parts)), join(*(part[1] for part in parts))
    checks = check_sites(lowered.model_path, policy=target.session, input_shape=(executors.fixed_batch or 1, *shape), progress=bar)
    found = audit(lowered.model_path, policy=target.session, sites=lowered.sites)
    facts = facts_of(executors.interpreter, input_shape=(1, *shape), pair_limit=target.accumulator.pair_limit)
    info = runtime_info()
    results = [_result("native", f"{info.name} {info.version}", info.cpu, native)]
    if simulation is not None:
        results.append(_result("simulation", simulation_version(), "", simulated))
    divergences = tuple(d for d in (native.first, simulated.first, checks.first) if d is not None)
    mismatches = native.mismatches + simulated.mismatches + checks.mismatches
    hostile_total = join(*(part[0] for part in hostile_parts))
    image_count = {"sites": hostile_total.tensors, "values": hostile_total.values, "mismatches": hostile_total.mismatches}
    islands = executors.interpreter.island_names
    return ValidationReport(
        verdict="mismatch" if mismatches else "exact",
        claim=claim_of(native, simulation is not None, checks, found, info, target.session, islands, divergences),
        session_policy={
            "optimization_level": target.session.optimization_level,
            "threads": target.session.threads,
            "config": dict(target.session.config),
        },
        runtimes=tuple(results),
        divergences=divergences,
        float_islands=islands,
        site_checks={**checks.counts, "model: adversarial images": image_count},
        audit=found,
        proofs={} if prove is None else prove(facts),
    )


def _check_options(images: NDArray[np.float32], runtimes: Sequence[str], batch: int) -> None:
    unknown = [name for name in runtimes if name not in RUNTIMES]
    if unknown or not runtimes:
        got = unknown[0] if unknown else "none"
        raise BadOptionError(f"--runtime is {got}, allowed {', '.join(RUNTIMES)}", hint="mixport runtimes list")
    if batch < 1:
        raise BadOptionError(f"batch is {batch}, allowed 1 or more", hint="use batch=32")
    if images.ndim != 4 or images.dtype != np.float32 or len(images) == 0:
        raise BadInputError(
            f"images are {images.dtype} of shape {images.shape}, allowed float32 [N, C, H, W] with N >= 1",
            hint="preprocess the images as the model's recipe says",
        )


def _result(name: str, version: str, cpu: str, comparison: Comparison) -> RuntimeResult:
    return RuntimeResult(
        name=name, version=version, cpu=cpu, tensors=comparison.tensors, values=comparison.values, mismatches=comparison.mismatches
    )
