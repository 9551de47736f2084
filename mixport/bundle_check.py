"""A bundle checked again: its hashes, then every code of its golden vectors on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mixport.artifacts import Divergence, RuntimeResult
from mixport.options import check_runtimes
from mixport.release import read_bundle, read_golden, verify_hashes
from mixport.targets import SessionRules
from mixport.validate.recheck import recheck


@dataclass(frozen=True, kw_only=True)
class BundleCheck:
    """What a check of a bundle found.

    Attributes:
        verdict: `exact`; `mismatch` where a code differs; `damaged` where a hash differs, and then nothing was run.
        hash_problems: one line each.
        runtimes: counts of each runtime that was run.
        divergences: first divergence of each runtime that differs.
        gates_not_met: gates of the build that failed, as its manifest says: codes that agree do not make it fit to ship.
    """

    verdict: Literal["exact", "mismatch", "damaged"]
    hash_problems: tuple[str, ...] = ()
    runtimes: tuple[RuntimeResult, ...] = ()
    divergences: tuple[Divergence, ...] = ()
    gates_not_met: tuple[str, ...] = ()


def check_bundle(path: Path, *, runtimes: Sequence[str] = ("native",)) -> BundleCheck:
    """Check hashes, then compare the golden vectors under the session policy of the bundle's own manifest.

    Args:
        path: folder that a build wrote.
        runtimes: names of runtimes; `native` only in this version.

    Raises:
        BadInputError: no bundle, an unknown runtime, or a model that the runtime refuses.
    """
    check_runtimes(runtimes)
    bundle = read_bundle(path)
    problems = verify_hashes(path)
    if problems:
        return BundleCheck(verdict="damaged", hash_problems=tuple(problems))
    golden = read_golden(bundle)
    policy = SessionRules.model_validate(bundle.manifest.validation.session_policy.model_dump())
    result, divergence = recheck(bundle.model_path, golden.inputs, golden.codes, golden.output, policy)
    return BundleCheck(
        verdict="mismatch" if result.mismatches else "exact",
        runtimes=(result,),
        divergences=() if divergence is None else (divergence,),
        gates_not_met=tuple(gate.gate for gate in bundle.manifest.gates if not gate.passed),
    )
