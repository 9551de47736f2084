from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixport.model.float_model import FloatModel
from mixport.quantize.quantizer import quantize, read_quantized
from mixport.records.calibration_set import CalibrationSet, Preprocessing
from mixport.records.choices.scheme import Scheme
from mixport.records.output_quality import sqnr_db
from mixport.records.quantized_model import QuantizedModel
from mixport.records.targets import load_target


class Squared(nn.Module):
    """Two layers with a function of one value in between; two outputs. The scaled channel cannot be told from
    noise behind codes.
    """

    def __init__(self, *, uneven: float = 1.0) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Linear(4, 2)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for layer in (self.first, self.last):
                for value in layer.parameters():
                    value.copy_(torch.randn(value.shape, generator=generator))
            self.first.weight[0] *= uneven
            self.last.weight[:, 0] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.act(self.first(x)).mean((2, 3))))


def quantized(module: nn.Module, folder: Path, *, scheme: Scheme) -> QuantizedModel:
    rng = np.random.default_rng(0)
    np.save(folder / "images.npy", rng.integers(0, 256, (8, 8, 8, 3)).astype(np.uint8))
    model = FloatModel(
        module=module.eval(),
        name="squared",
        source="tests:squared",
        sha256="0" * 64,
        preprocessing=Preprocessing(size=(8, 8), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        class_names=None,
        input_shape=(1, 3, 8, 8),
    )
    images = CalibrationSet(
        images_path=folder / "images.npy",
        count=8,
        method="images",
        recipe_key="0" * 64,
        content_sha256="0" * 64,
    )
    return quantize(model, images, load_target("ort-cpu"), scheme=scheme, workdir=folder)


def test_a_good_output_is_not_searched(tmp_path: Path) -> None:
    assert quantized(Squared(), tmp_path, scheme=Scheme(weight_bits=8, activation_bits=8)).loss is None


def test_the_tensor_whose_channels_differ_is_named(tmp_path: Path) -> None:
    """The channel of a thousandfold range is read by no weight, and takes the codes of the others."""
    record = quantized(Squared(uneven=1000.0), tmp_path, scheme=Scheme(weight_bits=8, activation_bits=8))
    loss = record.loss
    assert loss is not None
    assert (loss.images, loss.agreement is None) == (8, False)
    assert loss.sqnr_db < 15.0
    assert {one.name for one in loss.tensors[:2]} <= {"first", "act", "global_average_pool"}
    assert [one.sqnr_db for one in loss.tensors] == sorted(one.sqnr_db for one in loss.tensors)
    sites = {("activation", site.name) for site in record.activations} | {
        ("weight", site.name) for site in record.weights
    }
    assert {(one.kind, one.name) for one in loss.tensors} == sites
    assert read_quantized(tmp_path).loss == loss


def test_two_bit_weights_are_named_by_what_they_alone_cost(tmp_path: Path) -> None:
    module = Squared()
    record = quantized(module, tmp_path, scheme=Scheme(weight_bits=2, activation_bits=8, edge_bits=2))
    assert record.loss is not None
    worst = record.loss.tensors[0]
    assert worst.kind == "weight"
    images = torch.as_tensor(np.load(tmp_path / "images.npy").astype(np.float32).transpose(0, 3, 1, 2) / 255)
    x = (images - 0.5) / 0.25
    program = torch.export.load(tmp_path / "program.pt2")
    parts = {
        name: value for name, value in program.state_dict.items() if name.startswith(f"mixport_{worst.name}_")
    }
    with torch.no_grad():
        reference = module(x).numpy()
        for name, own in getattr(module, worst.name).named_parameters():
            codes, scale = (parts[f"mixport_{worst.name}_{name}_{part}"] for part in ("codes", "scale"))
            own.copy_(codes.float() * scale.view(-1, *[1] * (codes.dim() - 1)))
        alone = module(x).numpy()
    assert worst.sqnr_db == pytest.approx(sqnr_db(reference, alone), abs=1e-3)
