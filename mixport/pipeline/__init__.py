"""The jobs that join the stages: build, check a bundle, measure latency, examine the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixport.pipeline.build_bundle import build as build
    from mixport.pipeline.build_bundle import build_all as build_all

_PUBLIC = ("build", "build_all")


def __getattr__(name: str) -> object:
    # The options in this package are read by `mixport --help`, which must not wait for torch.
    if name in _PUBLIC:
        from mixport.pipeline import build_bundle

        return getattr(build_bundle, name)
    raise AttributeError(f"module 'mixport.pipeline' has no attribute {name!r}")
