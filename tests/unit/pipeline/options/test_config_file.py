from __future__ import annotations

from pathlib import Path

import pytest

from mixport.pipeline.options.config_file import merge, read_config
from mixport.pipeline.options.train_options import SweepOptions, TrainOptions
from mixport.records.errors import BadInputError, BadOptionError


def write(folder: Path, text: str) -> Path:
    path = folder / "mixport.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_file_speaks_kebab_and_snake_case(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        (
            '[build]\nedge-bits = 7\nrandom_weights = true\ncalib = "noise"\ntarget = ["a", '
            '"b"]\n[build.model-arg]\ndepth = 4\n'
        ),
    )
    options = merge(read_config(path), {})
    assert (options.edge_bits, options.random_weights, options.target, options.model_arg) == (
        7,
        True,
        ("a", "b"),
        {"depth": "4"},
    )


def test_options_of_drawing_are_read_and_overridden_too(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        (
            "[build]\nclasses-per-prompt = 3\ngen-size = [64, 32]\ngen-guidance = 2\ngen-safety-checker "
            "= true\nkeep-energy = 0.5\n"
        ),
    )
    options = merge(
        read_config(path), {"gen_safety_checker": False, "keep_energy": 0.75, "classes_per_prompt": None}
    )
    assert (options.classes_per_prompt, options.gen_size, options.gen_guidance) == (3, (64, 32), 2.0)
    assert (options.gen_safety_checker, options.keep_energy) == (False, 0.75)
    with pytest.raises(BadOptionError, match="--classes-per-prompt has no effect with --calib noise"):
        merge(read_config(path), {"calib": "noise"})


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, '[build]\ncalib = "noise"\nseed = 3\nimages = 9\ntarget = ["a"]\n')
    options = merge(read_config(path), {"seed": 0, "images": None, "target": [], "out": Path("here")})
    assert (options.seed, options.images, options.target, options.out) == (0, 9, ("a",), Path("here"))


def test_mixport_toml_of_the_working_directory_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_config(None) == {}
    write(tmp_path, "[build]\nseed = 5\n")
    assert read_config(None) == {"seed": 5}


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("[build]\nshceme = 'w4a8'\n", BadOptionError, "unknown option 'shceme'"),
        (
            "[biuld]\nscheme = 'w4a8'\n",
            BadOptionError,
            r"unknown table or key 'biuld' at the top, allowed: \[build\]",
        ),
        ("scheme = 'w4a8'\n", BadOptionError, "unknown table or key 'scheme'"),
        ("build = 3\n", BadOptionError, "build is a value"),
        ("[build\n", BadInputError, "cannot be read"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        read_config(write(tmp_path, text))
    assert "mixport.toml" in str(caught.value)


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"absent\.toml cannot be read"):
        read_config(tmp_path / "absent.toml")


def test_each_command_has_a_table_of_its_own(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        (
            '[build]\nseed = 1\n[train]\nmethod = "plain"\nseed = 2\nweight-decay = 0.5\n[sweep]\nschemes = '
            '["w4a4", "w2a4"]\niters = [0, 5]\n'
        ),
    )
    assert merge(read_config(path), {}).seed == 1
    train = merge(read_config(path, command="train"), {"seed": 3, "lr": None}, TrainOptions)
    assert (train.method, train.seed, train.weight_decay, train.lr) == ("plain", 3, 0.5, None)
    sweep = merge(read_config(path, command="sweep"), {}, SweepOptions)
    assert (sweep.schemes, sweep.iters) == (("w4a4", "w2a4"), (0, 5))


@pytest.mark.parametrize(
    ("command", "text", "message"),
    [
        ("train", "[train]\nscheme = 'w4a8'\n", "unknown option 'scheme', allowed: .*budget"),
        ("sweep", "[sweep]\nmethod = 'nipq'\n", "unknown option 'method'"),
        (
            "train",
            "[trian]\n",
            r"unknown table or key 'trian' at the top, allowed: \[build\], \[train\], \[sweep\]",
        ),
        ("train", "build = 3\n", "build is a value"),
    ],
)
def test_a_table_of_another_command_does_not_help(
    tmp_path: Path, command: str, text: str, message: str
) -> None:
    with pytest.raises(BadOptionError, match=message):
        read_config(write(tmp_path, text), command=command)
