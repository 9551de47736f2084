"""A bundle checked again: its hashes, the proofs that its manifest states, then every code of its golden
vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from mixport.arithmetic.definitions import ONNXRUNTIME
from mixport.records.progress import Progress, SilentProgress
from mixport.records.targets import SessionRules
from mixport.records.validation_report import Divergence, Localisation, RuntimeResult
from mixport.release.bundle import ReleaseBundle, read_bundle, read_golden, verify_hashes
from mixport.validate.facts import facts_of
from mixport.validate.interpreter.interpreter import Interpreter
from mixport.validate.proof.prove import prove
from mixport.validate.run.golden import Recheck, recheck
from mixport.validate.runtimes import open_runtimes


@dataclass(frozen=True, kw_only=True)
class BundleCheck:
    """What a check of a bundle found.

    Attributes:
        verdict: `exact`; `mismatch` where a code differs or a proof that the manifest states does not hold;
            `damaged` where a hash differs, and then nothing was run.
        hash_problems: one line each.
        proof_problems: bounds that the manifest says are kept and the file breaks, one line each; golden
            codes may miss them.
        runtimes: counts of each runtime that was run.
        divergences: first divergence of each runtime that differs.
        localisations: where and why that is.
        gates_not_met: gates of the build that failed, as its manifest says: codes that agree do not make it
            fit to ship.
    """

    verdict: Literal["exact", "mismatch", "damaged"]
    hash_problems: tuple[str, ...] = ()
    proof_problems: tuple[str, ...] = ()
    runtimes: tuple[RuntimeResult, ...] = ()
    divergences: tuple[Divergence, ...] = ()
    localisations: tuple[Localisation, ...] = ()
    gates_not_met: tuple[str, ...] = ()


def check_bundle(
    path: Path, *, runtimes: Sequence[str] = ("native",), progress: Progress | None = None
) -> BundleCheck:
    """Check hashes, then compare the golden vectors under the session policy of the bundle's own manifest.

    Args:
        path: folder that a build wrote.
        runtimes: names of runtimes, see `mixport runtimes list`.
        progress: told after every runtime.

    Raises:
        BadInputError: no bundle, an unknown runtime, or a model that the runtime of this process refuses.
        RuntimeUnavailableError: a runtime is not installed, does not start, or breaks off.
    """
    # Before any work: a runtime that is not installed is told at once.
    chosen = {one.name: one for one in open_runtimes(runtimes, arithmetic=ONNXRUNTIME.name)}
    bundle = read_bundle(path)
    problems = verify_hashes(path)
    if problems:
        return BundleCheck(verdict="damaged", hash_problems=tuple(problems))
    golden = read_golden(bundle)
    policy = SessionRules.model_validate(bundle.manifest.validation.session_policy.model_dump())
    found: list[Recheck] = []
    with (progress or SilentProgress()).track(
        "comparing runtimes", total=len(chosen), unit="runtimes"
    ) as advance:
        for name, runtime in chosen.items():
            # The runtime of this very process needs no other one.
            other = None if name == "native" else runtime
            found.append(
                recheck(bundle.model_path, golden.inputs, golden.codes, golden.output, policy, runtime=other)
            )
            advance(1)
    unproved = _proof_problems(bundle, golden.inputs.shape[1:])
    return BundleCheck(
        verdict="mismatch" if unproved or any(one.result.mismatches for one in found) else "exact",
        proof_problems=unproved,
        runtimes=tuple(one.result for one in found),
        divergences=tuple(one.divergence for one in found if one.divergence is not None),
        localisations=tuple(one.located for one in found if one.located is not None),
        gates_not_met=tuple(gate.gate for gate in bundle.manifest.gates if not gate.passed),
    )


_BOUNDS = ("int32_accumulators", "int16_pairs", "requantisation", "add_ratios")


def _proof_problems(bundle: ReleaseBundle, image: tuple[int, ...]) -> tuple[str, ...]:
    """What the manifest claims proved and the file does not keep, and scales that contradict each other."""
    stated: Mapping[str, Any] = bundle.manifest.validation.proofs
    limit = _entry(stated, "int16_pairs").get("limit")
    facts = facts_of(
        Interpreter(bundle.model_path),
        input_shape=(1, *image),
        pair_limit=limit if isinstance(limit, int) else None,
    )
    found = prove(facts)
    problems = [
        (
            f"the manifest says that {bound} hold, the file breaks them at "
            f"{', '.join(found[bound]['exceptions'][:3])}"
        )
        for bound in _BOUNDS
        if _entry(stated, bound).get("holds") is True and not found[bound]["holds"]
    ]
    return (
        *problems,
        *(f"node {one['node']}: {one['found']}" for one in found["violations"] if one["bound"] == "scales"),
    )


def _entry(proofs: Mapping[str, Any], bound: str) -> Mapping[str, Any]:
    entry = proofs.get(bound)
    return cast("Mapping[str, Any]", entry) if isinstance(entry, Mapping) else {}
