from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixport.model.float_model import load_model
from mixport.model.programs.program_file import load_program
from mixport.model.torchscript import check_eager
from mixport.model.weights_file import read_state_dict
from mixport.quantize.graph.capture import capture
from mixport.quantize.graph.side_effects import side_effect
from mixport.quantize.graph.soundness import check_sound
from mixport.records.errors import BadInputError, UnsupportedModelError

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Body(nn.Module):
    """A convolution, and what a test puts around it."""

    def __init__(self, change: Callable[[Body, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.calls = nn.Conv2d(3, 4, 3), 0
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(4), persistent=False)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self, x).mean((2, 3))


def writes(body: Body, x: Tensor) -> Tensor:
    return body.conv(x.sub_(0.5))


def counts(body: Body, x: Tensor) -> Tensor:
    body.count.add_(1)
    return body.conv(x) * body.count


def averages(body: Body, x: Tensor) -> Tensor:
    y = body.conv(x)
    body.seen = body.seen * 0.9 + y.mean((0, 2, 3)) * 0.1
    return y - body.seen.view(1, -1, 1, 1)


def masks(body: Body, x: Tensor) -> Tensor:
    y = body.conv(x)
    return y * (torch.rand(y.shape[0], 4, 1, 1) > 0.5)


def drops(body: Body, x: Tensor) -> Tensor:
    return F.dropout(body.conv(x), 0.5)


def mixes(body: Body, x: Tensor) -> Tensor:
    y = body.conv(x)
    return y - y.mean(0, keepdim=True)


def divides(body: Body, x: Tensor) -> Tensor:
    return body.conv(x) / torch.zeros(())


def remembers(body: Body, x: Tensor) -> Tensor:
    body.calls += 1
    return body.conv(x) * body.calls


@pytest.mark.parametrize(
    ("change", "what", "repair"),
    [
        (writes, "two runs on the same image differ: forward writes into its input", "x.clone()"),
        (counts, "two runs on the same image differ: forward changes count", "counters"),
        (averages, "two runs on the same image differ: forward changes seen", "running averages"),
        (masks, "two runs on the same image differ: forward draws random numbers", "masks"),
        (drops, "two runs on the same image differ: forward draws random numbers", "training=self.training"),
        (mixes, "the output for an image depends on the other images of its batch$", "running statistics"),
        (remembers, "two runs on the same image differ$", "attributes that it counts in"),
        (divides, "the model gives NaN or infinity for a calibration image", "--std"),
    ],
)
def test_what_was_seen_is_said(change: Callable[[Body, Tensor], Tensor], what: str, repair: str) -> None:
    model = replace(load_model("builtin:cifar10-resnet20"), module=Body(change).eval(), source="here")
    captured = capture(model.module, input_shape=(1, 3, 8, 8), dynamic_batch=True)
    with pytest.raises(UnsupportedModelError, match=f"here: {what}") as caught:
        check_sound(model, captured, IMAGES.clone())
    assert repair in str(caught.value.hint)


def test_a_rare_mask_is_random_not_a_mixture_of_the_batch() -> None:
    body = Body(lambda body, x: (y := body.conv(x)) * (torch.rand(y.shape[0], 4, 1, 1) > 0.1)).eval()
    model = replace(load_model("builtin:cifar10-resnet20"), module=body, source="here")
    captured = capture(body, input_shape=(1, 3, 8, 8), dynamic_batch=True)
    said: set[str] = set()
    for seed in range(60):
        torch.manual_seed(seed)
        try:
            check_sound(model, captured, IMAGES.clone())
        except UnsupportedModelError as error:
            said.add(str(error))
    # With luck two runs are equal, and a run of the batch differs from them, or that of the captured graph.
    assert (
        "here: the output for an image depends on the other images of its batch: forward draws random numbers"
        in said
    )
    assert all(text.endswith("forward draws random numbers") for text in said)


def test_a_plain_model_has_no_side_effect() -> None:
    body = Body(lambda body, x: body.conv(x)).eval()
    assert side_effect(body, IMAGES) is None
    check_sound(
        replace(load_model("builtin:cifar10-resnet20"), module=body),
        capture(body, input_shape=(1, 3, 8, 8), dynamic_batch=True),
        IMAGES,
    )


@pytest.fixture
def scripted() -> torch.jit.ScriptModule:
    return torch.jit.trace(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8))


def test_torchscript_modules_are_refused(scripted: torch.jit.ScriptModule) -> None:
    with pytest.raises(UnsupportedModelError, match="here: it is a TorchScript module") as caught:
        check_eager(scripted, source="here")
    assert "--weights FILE.safetensors" in str(caught.value.hint)
    with pytest.raises(UnsupportedModelError, match="here: its module 1 is a TorchScript module"):
        check_eager(nn.Sequential(nn.ReLU(), scripted), source="here")
    check_eager(nn.Sequential(nn.ReLU()), source="here")


def test_torchscript_archives_are_named(scripted: torch.jit.ScriptModule, tmp_path: Path) -> None:
    for name in ("m.pt", "m.pt2", "m.pth"):
        torch.jit.save(scripted, tmp_path / name)
    with pytest.raises(BadInputError, match=r"an archive of torch.jit.save, allowed builtin:NAME"):
        load_model(str(tmp_path / "m.pt"))
    with pytest.raises(BadInputError, match=r"refused: it is an archive of torch.jit.save"):
        load_program(tmp_path / "m.pt2")
    with pytest.raises(
        BadInputError, match=r"is an archive of torch.jit.save, allowed a state dict"
    ) as caught:
        read_state_dict(tmp_path / "m.pth")
    assert "save_file" in str(caught.value.hint)


def test_a_file_of_weights_is_no_model(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(BadInputError, match="a file of weights, allowed builtin:NAME"):
        load_model(str(tmp_path / "w.pth"))
