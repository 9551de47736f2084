"""mixport: a float vision model in, a validated low-bit ONNX bundle out."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixport.pipeline.build_bundle import build as build

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    # `mixport --help` must not wait for torch, which the pipeline imports.
    if name == "build":
        from mixport.pipeline.build_bundle import build

        return build
    if name == "train":  # a package that can be called
        return import_module("mixport.train")
    raise AttributeError(f"module 'mixport' has no attribute {name!r}")
