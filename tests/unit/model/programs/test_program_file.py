from __future__ import annotations

import json
import pickle
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from mixport.model.float_model import load_model
from mixport.model.programs.program_file import load_program
from mixport.pipeline.keys import model_key
from mixport.quantize.graph.capture import capture
from mixport.records.errors import BadInputError, UnsupportedModelError

BATCH = torch.export.Dim("batch", min=1)
IMAGE = torch.zeros(2, 3, 16, 16)


class Norms(nn.Module):
    """Everything that behaves in another way in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.plain = nn.BatchNorm2d(8, affine=False)
        self.drop_path, self.depth = DropPath(0.4), StochasticDepth(0.4, "row")
        self.channels, self.drop = nn.Dropout2d(0.3), nn.Dropout(0.3)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True)
        self.flat, self.head = nn.BatchNorm1d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn(self.conv(x)))
        y = y + self.drop_path(y.sigmoid())
        y = self.channels(y + self.depth(self.plain(y)))
        tokens = y[:, :, ::4, ::4].flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.head(self.drop(self.flat(tokens.mean(1))))


class Constants(nn.Module):
    """Tensors that no state dict holds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 4)
        self.register_buffer("shift", torch.randn(1, 4, 1, 1), persistent=False)
        self.plain = torch.rand(1, 4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = (self.conv(x) + self.shift) * self.plain
        return self.head(y.mean((2, 3)) * torch.tensor([0.5, 1.0, 2.0, 3.0]))


class Windows(nn.Module):
    """Window partition: sizes are products of symbols."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.inner, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        n, c, h, w = y.shape
        windows = y.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
        return self.head(self.inner(windows).view(n, h * w, c).mean(1))


class Operators(nn.Module):
    """Operators that decomposition takes apart."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(5))
        self.functions = nn.ModuleList(
            [nn.SiLU(), nn.Hardswish(), nn.Hardsigmoid(), nn.Mish(), nn.Softplus()]
        )
        self.up, self.groups, self.norm = nn.ConvTranspose2d(8, 8, 2, 2), nn.GroupNorm(2, 8), nn.LayerNorm(8)
        self.attention, self.qkv = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 24)
        self.mixed, self.head = nn.BatchNorm1d(8), nn.Linear(8, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(self.stem(x), 3, 2, 1)
        for layer, function in zip(self.layers, self.functions, strict=True):
            y = function(layer(y))
        y = F.adaptive_avg_pool2d(self.up(self.groups(y.roll(3, 2))), 4)
        tokens = self.norm(y.flatten(2).transpose(1, 2))
        q, k, v = self.qkv(tokens).reshape(-1, 16, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        tokens = tokens + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.head(self.mixed(tokens.mean(1)))


def save(
    path: Path, model: nn.Module, *, form: str = "exported", image: Tensor = IMAGE, shapes: object = None
) -> Path:
    program = torch.export.export(model, (image,), dynamic_shapes=shapes or ({0: BATCH},), strict=False)
    if form != "exported":
        program = program.run_decompositions({} if form == "inference" else None)
    torch.export.save(program, path)
    return path


def trained(model: nn.Module) -> nn.Module:
    """Running statistics that differ from those of any one batch."""
    torch.manual_seed(0)
    with torch.no_grad():
        for _ in range(5):
            model.train()(torch.randn(4, 3, 16, 16) + 0.3)
    return model


@pytest.mark.parametrize("form", ["exported", "inference", "core"])
def test_a_program_exported_in_train_mode_is_the_model_in_eval_mode(tmp_path: Path, form: str) -> None:
    torch.manual_seed(0)
    model = trained(Norms())
    program = load_program(save(tmp_path / "m.pt2", model.train(), form=form))
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        expected = model.eval()(images)
        torch.testing.assert_close(program.module(images), expected)
        torch.testing.assert_close(program.module(images[:1]), expected[:1])
    (note,) = program.notes
    # Two paths, one of channels, one of attention, one in front of the head.
    assert note.what == "3 batch norms in eval form, with running statistics and 5 dropouts left out"


def test_a_program_exported_in_eval_mode_has_no_note(tmp_path: Path) -> None:
    assert load_program(save(tmp_path / "m.pt2", trained(Norms()).eval())).notes == ()


@pytest.mark.parametrize("form", ["exported", "core"])
def test_tensor_constants_are_read(tmp_path: Path, form: str) -> None:
    model = Constants().eval()
    loaded = load_model(str(save(tmp_path / "m.pt2", model, form=form)))
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(images), model(images))
        graph = capture(loaded.module, input_shape=loaded.input_shape, dynamic_batch=True).graph
        torch.testing.assert_close(graph(images), model(images))


@pytest.mark.parametrize("any_size", [False, True])
def test_sizes_may_be_products_of_symbols(tmp_path: Path, any_size: bool) -> None:
    sides = (
        {2: 4 * torch.export.Dim("h", min=2, max=32), 3: 4 * torch.export.Dim("w", min=2, max=32)}
        if any_size
        else {}
    )
    path = save(tmp_path / "m.pt2", Windows().eval(), shapes=({0: BATCH, **sides},))
    loaded = load_model(str(path))
    assert loaded.preprocessing.size == (16, 16)
    assert ("input_size" in loaded.assumed) is any_size
    assert capture(loaded.module, input_shape=loaded.input_shape, dynamic_batch=True).dynamic_batch


def canonical(path: Path) -> Counter[str]:
    """How often each operator stands in the graph that is quantised."""
    loaded = load_model(str(path))
    graph = capture(loaded.module, input_shape=loaded.input_shape, dynamic_batch=True).graph
    assert bool((graph(IMAGE) - loaded.module(IMAGE)).abs().max() < 1e-5)
    return Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_function")


def test_a_decomposed_program_is_put_together_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = trained(Operators()).eval()
    written, decomposed = (
        canonical(save(tmp_path / f"{form}.pt2", model, form=form)) for form in ("exported", "core")
    )
    movement = {
        "aten.reshape.default",
        "aten.permute.default",
        "aten.transpose.int",
        "aten.t.default",
        "aten.flatten.using_ints",
    }
    views = {
        "aten.unbind.int",
        "aten.select.int",
        "aten.slice.Tensor",
        "aten.squeeze.dim",
        "aten.squeeze.dims",
        "aten.sym_size.int",
    }
    shapes = (
        movement
        | views
        | {
            "<built-in function getitem>",
            "<built-in function mul>",
            "aten.unsqueeze.default",
            "aten.expand.default",
        }
    )
    assert {op: n for op, n in decomposed.items() if op not in shapes} == {
        op: n for op, n in written.items() if op not in shapes
    }
    assert written["aten.linear.default"] == 4
    # SiLU and hard swish are products with their gate by then.
    assert (
        written["aten.hardsigmoid.default"] >= 1
        and written["aten.sigmoid.default"] >= 1
        and written["aten.mish.default"] == 1
    )


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.conv(x).float().mean((2, 3))


def test_layers_in_half_precision_are_named() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"aten.conv2d computes in bfloat16, allowed float32"
    ) as caught:
        capture(Half().eval(), input_shape=(1, 3, 16, 16), dynamic_batch=True)
    assert "autocast" in str(caught.value.hint)


class Chooses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.mean() > 0, self.first, self.second, (x,)).mean((2, 3))


def test_control_flow_is_said_to_stay_in_float(tmp_path: Path) -> None:
    loaded = load_model(str(save(tmp_path / "m.pt2", Chooses().eval())))
    decisions = capture(loaded.module, input_shape=loaded.input_shape, dynamic_batch=True).decisions
    assert [one.what for one in decisions if "cond" in one.what] == ["torch.cond left in float"]


class Pixels(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float().mean((2, 3))


@pytest.mark.parametrize(
    ("dtype", "hint"),
    [
        (torch.float16, "model.float()"),
        (torch.bfloat16, "model.float()"),
        (torch.float64, "model.float()"),
        (torch.uint8, "--mean"),
    ],
)
def test_images_of_another_type_are_refused(tmp_path: Path, dtype: torch.dtype, hint: str) -> None:
    path = save(tmp_path / "m.pt2", Pixels(), image=IMAGE.to(dtype))
    with pytest.raises(
        UnsupportedModelError, match=rf"it takes {str(dtype)[6:]} images, allowed float32"
    ) as caught:
        load_program(path)
    assert hint in str(caught.value.hint)


class Wrapped(nn.Module):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["image"].mean((2, 3))


class Keyword(nn.Module):
    def forward(self, *, image: Tensor) -> Tensor:
        return image.mean((2, 3))


def test_an_image_that_is_not_given_by_position_is_named(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(Wrapped(), ({"image": IMAGE},)), tmp_path / "wrapped.pt2")
    torch.export.save(torch.export.export(Keyword(), (), {"image": IMAGE}), tmp_path / "keyword.pt2")
    with pytest.raises(UnsupportedModelError, match="it takes the image inside a dict"):
        load_program(tmp_path / "wrapped.pt2")
    with pytest.raises(UnsupportedModelError, match="it takes the image as the keyword 'image'"):
        load_program(tmp_path / "keyword.pt2")


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.conv, self.factor = nn.Conv2d(3, 4, 3), factor

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(x) * self.factor).mean((2, 3))


def test_two_programs_with_equal_weights_are_two_models(tmp_path: Path) -> None:
    first, second = Scaled(2.0), Scaled(3.0)
    second.load_state_dict(first.state_dict())
    one = load_model(str(save(tmp_path / "m.pt2", first)))
    other = load_model(str(save(tmp_path / "m.pt2", second)))
    assert one.sha256 == other.sha256
    assert model_key(one) != model_key(other)


_PLAIN = pickle.dumps([1.0])
"""A pickle that does nothing: it is refused for being one."""

Members = dict[str, bytes]


def flagged_by_a_number(members: Members) -> None:
    index = json.loads(members["data/weights/model_weights_config.json"])
    entry = next(iter(index["config"].values()))
    entry["use_pickle"] = 1
    members["data/weights/model_weights_config.json"] = json.dumps(index).encode()
    members[f"data/weights/{entry['path_name']}"] = _PLAIN


def older_weights(members: Members) -> None:
    members["data/weights/model.pt"] = _PLAIN


def opaque_constant(members: Members) -> None:
    weights = json.loads(members["data/weights/model_weights_config.json"])["config"]
    entry = {**next(iter(weights.values())), "path_name": "opaque_obj_0"}
    members["data/constants/model_constants_config.json"] = json.dumps({"config": {"c": entry}}).encode()
    members["data/constants/opaque_obj_0"] = _PLAIN


def compiled_code(members: Members) -> None:
    members["data/aotinductor/model/code.so"] = b"\x7fELF"


def named_twice(members: Members) -> None:
    members["data/Weights/model_weights_config.json"] = members["data/weights/model_weights_config.json"]


def file_of_the_user(members: Members) -> None:
    members["models/model.json"] = members["models/model.json"].replace(
        b"torch.ops.aten.conv2d.default", b"torch.ops.aten.from_file.default"
    )


def function_as_an_argument(members: Members) -> None:
    graph = members["models/model.json"]
    assert b'{"as_float": 2.0}' in graph
    members["models/model.json"] = graph.replace(b'{"as_float": 2.0}', b'{"as_operator": "torch.relu"}')


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (flagged_by_a_number, "pickled tensors"),
        (older_weights, "it holds data/weights/model.pt"),
        (opaque_constant, "it holds data/constants/opaque_obj_0"),
        (compiled_code, "it holds data/aotinductor"),
        (named_twice, "have the same name"),
        (file_of_the_user, "calls 'torch.ops.aten.from_file.default'"),
        (function_as_an_argument, "calls 'torch.relu'"),
    ],
)
def test_what_would_run_code_is_refused(tmp_path: Path, change: Callable[[Members], None], what: str) -> None:
    path = save(tmp_path / "m.pt2", Scaled(2.0))
    with zipfile.ZipFile(path) as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"m/{name}", data)
    with pytest.raises(BadInputError, match=what):
        load_program(path)
