"""A manifest's command line, read back by the command's own parser, gives the options it was written from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mixport.cli.commands.reproduce import read_command
from mixport.pipeline.options.build_options import BuildOptions, command_line
from mixport.records.errors import BadInputError

OPTIONS: list[dict[str, Any]] = [
    {},
    {"model": "timm:resnet18", "random_weights": True, "calib": "noise", "seed": 3, "input_size": "64x96"},
    {
        "model": "my models.py:it's",
        "weights": "a b/w.safetensors",
        "model_arg": {"pad_type": "same", "name": "a=b, c"},
        "mean": "0.5,0.5,0.25",
        "std": "0.5,0.5,0.5",
        "crop": 0.9,
    },
    {
        "scheme": "w2a4",
        "reconstruction": "qdrop",
        "mlp_reconstruction": False,
        "target": ["ort-cpu", "onnx-int8"],
        "portable": False,
    },
    {
        "generator": "builtin",
        "gate": ["mismatches==0", "agreement>=0.5"],
        "runtime": ["native", "command:python3 {runner} {job}"],
    },
]


@pytest.mark.parametrize("values", OPTIONS)
def test_the_way_there_and_back(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what a mixport.toml of this folder says is not what the build was told
    (tmp_path / "mixport.toml").write_text("[build]\nseed = 99\n")
    monkeypatch.chdir(tmp_path)
    options = BuildOptions.of(values)
    found = read_command(command_line(options), source=Path("bundle"))
    assert found == options
    assert found.given("generator") == options.given("generator")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "no command line under `reproduce`"),
        ("mixport build 'open", "no command line under `reproduce`"),
        ("rm -rf everything", "allowed mixport build"),
        ("mixport build --no-such-option", "No such option"),
        ("mixport build --scheme w99a99", "w99a99"),
    ],
)
def test_what_is_no_build_of_ours(line: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message) as caught:
        read_command(line, source=Path("bundle"))
    assert caught.value.hint == "build bundle again, or mixport bench bundle --against FILE.onnx"
