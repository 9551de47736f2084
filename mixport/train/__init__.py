"""Training for low bits: another way to choose weights, widths and intervals, before the same exporter.

`mixport.train(...)` is the public door beside `mixport.build(...)`, and this package has its name: the module
itself can be called. The function is the pipeline's, found when it is called.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Door(ModuleType):
    """This module, which can be called."""

    def __call__(self, model: str = "builtin:cifar10-resnet20", **options: Any) -> Any:
        """See `mixport.pipeline.training.train_model.train`."""
        return import_module("mixport.pipeline.training.train_model").train(model, **options)


sys.modules[__name__].__class__ = _Door
