"""The classifiers that builtin:NAME names: their structure, and where their weights lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from mixport.builtin import weights_file
from mixport.model.shipped.cifar_resnet import BLOCKS, CifarResNet
from mixport.model.shipped.cifar_vit import cifar_vit
from mixport.records.errors import BadInputError

#: In index order.
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def create_builtin(name: str, *, arguments: Mapping[str, Any]) -> nn.Module:
    """The model without weights. Raises BadInputError for an unknown name, or arguments that its constructor
    refuses.
    """
    try:
        return _constructors()[_known(name)](**arguments)
    except TypeError as error:
        raise BadInputError(
            f"builtin:{name}: the model refused its arguments: {error}", hint="check --model-arg KEY=VALUE"
        ) from error


def builtin_weights(name: str) -> Path:
    """The weights that ship with a model. Raises BadInputError where none do, or for an unknown name."""
    path = weights_file(_known(name))
    if path is None:
        raise BadInputError(
            f"builtin:{name} has no weights of its own in this version",
            hint="--weights FILE.safetensors, or --random-weights to try it",
        )
    return path


def _constructors() -> dict[str, Callable[..., nn.Module]]:
    resnets = {f"cifar10-resnet{depth}": partial(CifarResNet, blocks) for depth, blocks in BLOCKS.items()}
    return {**resnets, "cifar10-vit": cifar_vit}


def _known(name: str) -> str:
    known = _constructors()
    if name not in known:
        raise BadInputError(
            f"unknown builtin model {name!r}, known: {', '.join(known)}",
            hint="mixport build builtin:cifar10-resnet20",
        )
    return name
