"""Real architectures with random weights: each builds and validates with zero mismatches, or fails naming the
operator.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.architectures import ARCHITECTURES, QUICK, SCHEMES, Architecture, attempt


def _marks(architecture: Architecture, scheme: str) -> tuple[pytest.MarkDecorator, ...]:
    """Quick ones are built in the sweep."""
    if scheme != "w4a8" or architecture.name not in QUICK:
        return (pytest.mark.architectures,)
    return (pytest.mark.sweep,)


def _parameters() -> list[object]:
    return [
        pytest.param(
            architecture, scheme,
            marks=_marks(architecture, scheme),
            id=f"{architecture.name}-{scheme}",
        )
        for architecture in ARCHITECTURES
        for scheme in SCHEMES
    ]  # fmt: skip


@pytest.mark.parametrize(("architecture", "scheme"), _parameters())
@pytest.mark.timeout(900)
def test_architecture(architecture: Architecture, scheme: str, tmp_path: Path) -> None:
    outcome = attempt(architecture, scheme, tmp_path)
    assert outcome.verdict in {"exact", "UnsupportedModelError"}, outcome
    if outcome.verdict == "UnsupportedModelError":
        assert "aten" in outcome.message or "operator" in outcome.message


def test_at_least_thirty_architectures_of_different_families() -> None:
    assert len(ARCHITECTURES) >= 30
    assert len({architecture.family for architecture in ARCHITECTURES}) >= 25
    assert set(QUICK) <= {architecture.name for architecture in ARCHITECTURES}
