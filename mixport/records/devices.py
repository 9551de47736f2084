"""Where torch computes: the CPU, or a CUDA device where there is one."""

from __future__ import annotations

from mixport.records.errors import BadOptionError


def resolve_device(asked: str) -> str:
    """`cpu` or `cuda` for auto, cpu or cuda. Raises BadOptionError where CUDA is asked for and not there."""
    if asked == "cpu":
        return asked
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if asked == "cuda":
        raise BadOptionError("--device is cuda, and torch finds no CUDA device here", hint="--device cpu")
    return "cpu"


def compute_threads() -> int:
    """How many threads torch computes with on the CPU: sums are split among them, so float results depend on
    their number.
    """
    import torch

    return torch.get_num_threads()
