"""Quantise: from a float model to a program whose every integer is fixed."""

from __future__ import annotations

from mixport.quantize.float_model import FloatModel, PreprocessingOverrides, load_model
from mixport.quantize.output_classes import check_class_count
from mixport.quantize.quantizer import quantize, read_quantized
from mixport.quantize.run import float_logits
from mixport.quantize.simulate import open_simulation
from mixport.quantize.zero_weights import zero_layers

__all__ = [
    "FloatModel",
    "PreprocessingOverrides",
    "check_class_count",
    "float_logits",
    "load_model",
    "open_simulation",
    "quantize",
    "read_quantized",
    "zero_layers",
]
