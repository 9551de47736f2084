"""Executable definitions of what devices compute, by the name that a target gives."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from mixport.arithmetic.definitions.definition import Definition, Layer, Operand, Output
from mixport.arithmetic.definitions.htp import Htp
from mixport.arithmetic.definitions.onnxruntime import OnnxRuntime

ONNXRUNTIME: Definition = OnnxRuntime()

DEFINITIONS: Mapping[str, Definition] = MappingProxyType(
    {one.name: one for one in (ONNXRUNTIME, Htp(68), Htp(73))}
)

__all__ = ["DEFINITIONS", "ONNXRUNTIME", "Definition", "Htp", "Layer", "OnnxRuntime", "Operand", "Output"]
