"""A bundle checked again: its hashes, then every code of its golden vectors on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mixport.artifacts import Divergence, Localisation, RuntimeResult
from mixport.progress import Progress, SilentProgress
from mixport.release import read_bundle, read_golden, verify_hashes
from mixport.runtimes import open_runtimes
from mixport.targets import SessionRules
from mixport.validate.recheck import Recheck, recheck


@dataclass(frozen=True, kw_only=True)
class BundleCheck:
    """What a check of a bundle found.

    Attributes:
        verdict: `exact`; `mismatch` where a code differs; `damaged` where a hash differs, and then nothing was run.
        hash_problems: one line each.
        runtimes: counts of each runtime that was run.
        divergences: first divergence of each runtime that differs.
        localisations: where and why that is.
        gates_not_met: gates of the build that failed, as its manifest says: codes that agree do not make it fit to ship.
    """

    verdict: Literal["exact", "mismatch", "damaged"]
    hash_problems: tuple[str, ...] = ()
    runtimes: tuple[RuntimeResult, ...] = ()
    divergences: tuple[Divergence, ...] = ()
    localisations: tuple[Localisation, ...] = ()
    gates_not_met: tuple[str, ...] = ()


def check_bundle(path: Path, *, runtimes: Sequence[str] = ("native",), progress: Progress | None = None) -> BundleCheck:
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
    chosen = {one.name: one for one in open_runtimes(runtimes)}
    bundle = read_bundle(path)
    problems = verify_hashes(path)
    if problems:
        return BundleCheck(verdict="damaged", hash_problems=tuple(problems))
    golden = read_golden(bundle)
    policy = SessionRules.model_validate(bundle.manifest.validation.session_policy.model_dump())
    found: list[Recheck] = []
    with (progress or SilentProgress()).track("comparing runtimes", total=len(chosen), unit="runtimes") as advance:
        for name, runtime in chosen.items():
            # The runtime of this very process needs no other one.
            other = None if name == "native" else runtime
            found.append(recheck(bundle.model_path, golden.inputs, golden.codes, golden.output, policy, runtime=other))
            advance(1)
    return BundleCheck(
        verdict="mismatch" if any(one.result.mismatches for one in found) else "exact",
        runtimes=tuple(one.result for one in found),
        divergences=tuple(one.divergence for one in found if one.divergence is not None),
        localisations=tuple(one.located for one in found if one.located is not None),
        gates_not_met=tuple(gate.gate for gate in bundle.manifest.gates if not gate.passed),
    )
