"""What a model takes and gives: names, shapes, roles and the task. Every stage reads it here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mixport.records.errors import InvariantError

Task = Literal["classification"]
PortRole = Literal["image", "logits"]


@dataclass(frozen=True, kw_only=True)
class ModelPort:
    """One input or output.

    Attributes:
        name: in the ONNX file and in golden files.
        shape: sizes in its order of axes; None is the batch.
        role: what it holds: `image` float32 [N, 3, H, W], `logits` float32 [N, classes].
    """

    name: str
    shape: tuple[int | None, ...]
    role: PortRole


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Of one model.

    Attributes:
        inputs: in order.
        outputs: in order.
        task: what the outputs mean, and which metrics there are.
    """

    inputs: tuple[ModelPort, ...]
    outputs: tuple[ModelPort, ...]
    task: Task

    @property
    def image(self) -> ModelPort:
        """The one input. Raises InvariantError where there are others: what asks knows of one image alone."""
        return _only(self.inputs, "image")

    @property
    def logits(self) -> ModelPort:
        """The one output. Raises InvariantError where there are others."""
        return _only(self.outputs, "logits")

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.logits.shape[1] or 0)


def classifier(input_shape: tuple[int, int, int, int], *, classes: int) -> Signature:
    """Signature of an image classifier.

    Args:
        input_shape: [1, 3, H, W].
        classes: width of its one output.
    """
    return Signature(
        inputs=(ModelPort(name="input", shape=(None, *input_shape[1:]), role="image"),),
        outputs=(ModelPort(name="output", shape=(None, classes), role="logits"),),
        task="classification",
    )


def _only(ports: tuple[ModelPort, ...], role: PortRole) -> ModelPort:
    if len(ports) != 1 or ports[0].role != role:
        found = ", ".join(f"{one.name} ({one.role})" for one in ports)
        raise InvariantError(f"the model has {found or 'nothing'}, expected one {role}")
    return ports[0]
