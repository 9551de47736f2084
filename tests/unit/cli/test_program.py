from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import typer

from mixport import __version__
from mixport.cli import program as cli
from mixport.cli.commands import build as build_command
from mixport.cli.commands import doctor as doctor_command
from mixport.cli.options.declared import declarations
from mixport.cli.panels import PanelCommand
from mixport.cli.program import COMMANDS as PROGRAM_COMMANDS
from mixport.cli.program import make_app, run
from mixport.pipeline.options.build_options import BuildOptions
from mixport.pipeline.options.shown import PANELS
from mixport.records.errors import (
    BadInputError,
    ExitCode,
    InvariantError,
    MixportError,
    ValidationFailedError,
)
from mixport.storage.store import Store
from mixport.validate.runtimes.names import NAMES

COMMANDS = [
    "build",
    "train",
    "sweep",
    "validate",
    "inspect",
    "bench",
    "conformance",
    "doctor",
    "calib",
    "targets",
    "runtimes",
]
SUBCOMMANDS = [
    ["calib", "generate"],
    ["calib", "list"],
    ["calib", "show"],
    ["calib", "sheet"],
    ["calib", "verify"],
    ["calib", "prune"],
    ["targets", "list"],
    ["targets", "show"],
    ["targets", "check"],
    ["runtimes", "list"],
    ["runtimes", "install"],
]

#: Options of drawn calibration images, of build and of calib generate.
DRAWING = (
    "classes-per-prompt template pairing label-text gen-revision gen-scheduler gen-steps "
    "gen-guidance gen-negative gen-size gen-dtype "
    "gen-batch gen-safety-checker no-gen-safety-checker keep-energy keep-statistics"
)
#: Further options of calib generate.
OF_CALIBRATION = (
    "calib generator classes images seed device weights random-weights model-arg input-size mean std "
    "crop cache config json quiet"
)

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Make `mixport doctor` raise."""

    def install(error: BaseException) -> None:
        def examine(**_: Any) -> NoReturn:
            raise error

        monkeypatch.setattr(doctor_command, "examine", examine)

    return install


def test_version(capsys: Capture) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"mixport {__version__}\n"


def test_the_contract_s_commands_are_all_there() -> None:
    app = make_app([])
    assert [command.name for command in app.registered_commands] + [
        group.name for group in app.registered_groups
    ] == COMMANDS
    found = [
        [name, command.name]
        for name in COMMANDS
        for group in make_app([name]).registered_groups
        if group.name == name
        for command in group.typer_instance.registered_commands
    ]
    assert found == SUBCOMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_is_not_imported_shows_the_help_it_has(name: str, capsys: Capture) -> None:
    run([name, "--help"])
    own = " ".join(capsys.readouterr().out.split("\n\n")[1].split())
    assert own == PROGRAM_COMMANDS[name].help


def test_every_option_of_a_build_is_declared_once() -> None:
    declared = declarations()
    assert declared.keys() == BuildOptions.model_fields.keys()
    assert [name for name, (_, shown) in declared.items() if shown.panel not in PANELS] == []


@pytest.mark.parametrize("words", [[], *[[name] for name in COMMANDS], *SUBCOMMANDS], ids=" ".join)
def test_every_command_explains_itself(words: list[str], capsys: Capture) -> None:
    assert run([*words, "--help"]) == 0
    assert "Usage: mixport" in capsys.readouterr().out


def test_build_help_names_every_option_of_the_contract(capsys: Capture) -> None:
    run(["build", "--help"])
    text = capsys.readouterr().out
    options = (
        "weights random-weights model-arg scheme edge-bits target calib generator classes images "
        "seed device iters reconstruction "
        "mlp-reconstruction no-mlp-reconstruction "
        "eval gate runtime out cache config json quiet " + DRAWING
    )
    assert [name for name in options.split() if not re.search(rf"--{name}\s", text)] == []


def test_calib_generate_has_the_options_of_build_in_groups(capsys: Capture) -> None:
    run(["calib", "generate", "--help"])
    text = capsys.readouterr().out
    assert [
        name for name in f"{OF_CALIBRATION} {DRAWING}".split() if not re.search(rf"--{name}\s", text)
    ] == []
    heads = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert heads == [
        "Arguments:",
        "Model:",
        "Calibration images:",
        "Prompts:",
        "Generator:",
        "Filters of drawn images:",
        "Options:",
    ]
    assert (
        text.index("Generator:")
        < text.index("--gen-steps")
        < text.index("Filters of drawn images:")
        < text.index("--keep-energy")
    )


def test_build_s_options_come_in_groups_too(capsys: Capture) -> None:
    grouped = typer.Typer(add_completion=False, rich_markup_mode=None)
    grouped.command("build", cls=PanelCommand)(build_command.build)
    grouped(["--help"], standalone_mode=False)
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")] == [
        "Arguments:", "Model:", "Quantisation:", "Calibration images:", "Prompts:", "Generator:",
        "Filters of drawn images:",
        "Validation and gates:", "Files:", "Options:",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "words", [[], ["calib"], ["targets"], ["runtimes"]], ids=lambda words: " ".join(words) or "mixport"
)
def test_no_command_shows_help_as_a_usage_error(words: list[str], capsys: Capture) -> None:
    assert run(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Usage: mixport")


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["biuld"], "No such command 'biuld'", "mixport --help"),
        (["calib", "lst"], "No such command 'lst'", "mixport calib --help"),
        (["build", "--shceme", "w4a8"], "No such option: --shceme", "mixport build --help"),
        (["build", "--images", "many"], "Invalid value for '--images'", "mixport build --help"),
        (["build", "--seed"], "requires an argument", "mixport build --help"),
        (["targets", "show"], "Missing argument", "mixport targets show --help"),
        (["build", "--scheme", "w9a9"], "--scheme is 'w9a9'", "mixport build --scheme w4a8 ..."),
        (
            ["build", "--calib", "distill"],
            "--calib distill is not part of this version yet",
            "mixport build --calib mixup",
        ),
        (
            ["build", "--calib", "noise", "--gen-steps", "5"],
            "--gen-steps has no effect with --calib noise",
            "--calib mixup, or leave",
        ),
        (
            ["calib", "generate", "--calib", "noise", "--template", "{classes}"],
            "--template has no effect",
            "--calib mixup, or leave",
        ),
        (
            ["build", "--calib", "single", "--classes-per-prompt", "3"],
            "has no effect with --calib single",
            "--calib mixup, or leave",
        ),
        (
            ["build", "--gate", "top1_drop<=1"],
            "--gate 'top1_drop<=1' needs labelled images",
            "mixport build --eval DIR --gate 'top1_drop<=1'",
        ),
        (["build", "--gate", "speed>1"], "unknown metric speed", "mixport build --gate"),
        (["build", "--calib", "noise", "--iters", "-5"], "--iters: ", "mixport build --help"),
        (
            ["build", "--reconstruction", "best"],
            "--reconstruction is 'best', allowed nearest",
            "mixport build --help",
        ),
        (
            ["build", "--calib", "noise", "--iters", "0", "--mlp-reconstruction"],
            "--mlp-reconstruction has no effect with --iters 0",
            "--iters N, or leave --mlp-reconstruction out",
        ),
        (
            ["build", "--calib", "noise", "--iters", "0", "--device", "cuda"],
            "--device cuda has no effect",
            "leave --device out",
        ),
        (["build", "--calib", "noise", "--device", "tpu"], "--device: ", "mixport build --help"),
        (["calib", "prune"], "nothing", "mixport calib prune --stages"),
    ],
)
def test_usage_errors_exit_with_2_and_say_what_to_type(
    words: list[str],
    message: str,
    hint: str,
    capsys: Capture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert f"hint: {hint}" in captured.err
    assert list(tmp_path.iterdir()) == []


def test_usage_errors_in_json_mode_are_one_document(capsys: Capture) -> None:
    assert run(["build", "--json", "--images", "many"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["error"]["exit_code"] == 2
    assert "--images" in document["error"]["message"]


@pytest.mark.parametrize(
    ("error", "code", "message", "hint"),
    [
        (BadInputError("no such file", hint="ls"), ExitCode.USER, "no such file", "ls"),
        (MixportError("no hint"), ExitCode.USER, "no hint", None),
        (ValidationFailedError("codes differ"), ExitCode.FAILED, "codes differ", None),
        (InvariantError("a pass broke"), ExitCode.BUG, "a pass broke", "this is our bug"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            ExitCode.USER,
            "No space left on device",
            "free some space",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "dist"),
            ExitCode.USER,
            "Permission denied: 'dist'",
            "free some space",
        ),
        (
            OSError(errno.ENAMETOOLONG, "File name too long"),
            ExitCode.USER,
            "File name too long",
            "free some space",
        ),
        (MemoryError(), ExitCode.USER, "not enough memory", "fewer --images"),
        (
            ZeroDivisionError("division by zero"),
            ExitCode.BUG,
            "ZeroDivisionError: division by zero",
            "this is our bug",
        ),
        (FileNotFoundError(errno.ENOENT, "gone"), ExitCode.BUG, "FileNotFoundError", "this is our bug"),
        (
            KeyboardInterrupt(),
            ExitCode.INTERRUPTED,
            "interrupted",
            "the same command goes on where it stopped",
        ),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_every_way_to_fail_has_its_exit_code(
    error: BaseException,
    code: ExitCode,
    message: str,
    hint: str | None,
    as_json: bool,
    failing: Callable[[BaseException], None],
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MIXPORT_DEBUG", raising=False)
    failing(error)
    assert run(["doctor", *(["--json"] if as_json else [])]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert (f"hint: {hint}" in captured.err) if hint else ("hint: " not in captured.err)
    assert "Traceback" not in captured.err
    if not as_json:
        assert captured.out == ""
        return
    document = json.loads(captured.out)["error"]
    assert (document["exit_code"], message in document["message"]) == (code, True)
    assert (document["hint"] or "").startswith(hint or "")


def test_the_traceback_comes_only_when_asked_for(
    failing: Callable[[BaseException], None], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIXPORT_DEBUG", "1")
    failing(ZeroDivisionError("division by zero"))
    assert run(["doctor"]) == ExitCode.BUG
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_doctor_lists_what_is_installed(capsys: Capture) -> None:
    assert run(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    found = {item["what"]: item for item in document["findings"]}
    assert document["ready"] is True
    assert {
        "python",
        "torch",
        "diffusers",
        "transformers",
        "onnxruntime",
        "generator",
        "hub cache",
        "processor",
        "gpu",
        "disk",
    } <= found.keys()
    assert found["torch"]["status"] == "ok"


def test_doctor_fails_and_says_what_to_type_when_a_package_is_missing(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import metadata

    real = metadata.version

    def version(name: str) -> str:
        if name == "onnxruntime":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    assert run(["doctor"]) == 1
    captured = capsys.readouterr()
    assert "not installed" in captured.out
    assert "hint: pip install onnxruntime" in captured.err


def test_targets_list_and_show(capsys: Capture) -> None:
    assert run(["targets", "list", "--json"]) == 0
    assert "ort-cpu" in [target["name"] for target in json.loads(capsys.readouterr().out)]
    assert run(["targets", "show", "ort-cpu"]) == 0
    assert "[weights]" in capsys.readouterr().out
    assert run(["targets", "show", "ort-cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["graph"]["opset_max"] == 26


def test_an_unknown_target_is_a_user_error(capsys: Capture) -> None:
    assert run(["targets", "show", "ort-gpu"]) == 1
    captured = capsys.readouterr()
    assert "unknown target 'ort-gpu', known: " in captured.err
    assert "hint: mixport targets list" in captured.err


def test_runtimes_list_says_what_is_present_and_how_to_get_the_rest(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIXPORT_RUNTIMES", str(tmp_path / "none"))
    assert run(["runtimes", "list", "--json"]) == 0
    found = {item["name"]: item for item in json.loads(capsys.readouterr().out)}
    assert list(found) == list(NAMES)
    assert found["native"]["present"] and found["native"]["hint"] is None
    assert not found["wasm"]["present"] and found["wasm"]["download_mb"] > 0
    assert run(["runtimes", "list"]) == 0
    captured = capsys.readouterr()
    assert "ssh:HOST" in captured.out and "command:LINE" in captured.out
    assert "hint: " in captured.err


def test_runtimes_list_imports_nothing_heavy(tmp_path: Path) -> None:
    heavy = "print(sorted({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    code = f"import sys; from mixport.cli.program import run; run(['runtimes', 'list']); {heavy}"
    environment = {**os.environ, "MIXPORT_RUNTIMES": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_unknown_runtime_is_not_installed(capsys: Capture) -> None:
    assert run(["runtimes", "install", "toaster"]) == 1
    captured = capsys.readouterr()
    assert "runtime 'toaster' cannot be installed, known: native, x64-avx2" in captured.err
    assert "hint: mixport runtimes list" in captured.err


@pytest.mark.parametrize("command", [["build", "--calib", "noise"], ["validate", "nowhere"]])
def test_a_runtime_that_is_not_installed_is_told_before_any_work(
    command: list[str], capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIXPORT_RUNTIMES", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    assert run([*command, "--runtime", "native", "--runtime", "wasm"]) == 1
    captured = capsys.readouterr()
    assert "runtime wasm" in captured.err and "hint: " in captured.err
    assert [path.name for path in tmp_path.iterdir()] == []


def test_an_empty_cache_is_listed_verified_and_pruned(capsys: Capture, tmp_path: Path) -> None:
    cache = ["--cache", str(tmp_path / "none"), "--json"]
    assert run(["calib", "list", *cache]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert run(["calib", "verify", *cache]) == 0
    assert json.loads(capsys.readouterr().out) == {"entries": 0, "damaged": {}}
    assert run(["calib", "prune", "--stages", *cache]) == 0
    assert json.loads(capsys.readouterr().out) == {"removed": [], "bytes": 0}
    assert run(["calib", "show", "abc", *cache]) == 1
    assert not (tmp_path / "none").exists()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with two stage results."""
    store = Store(tmp_path / "cache")
    for key in ("aa", "bb"):
        with store.create("quantized", key) as folder:
            (folder / "file").write_bytes(b"12345")
    return store.root


def kept(cache: Path) -> list[str]:
    return sorted(entry.key for entry in Store(cache).entries())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_prune_without_a_terminal_wants_a_yes(
    capsys: Capture, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert run(["calib", "prune", "--stages", "--cache", str(cache)]) == 2
    captured = capsys.readouterr()
    assert "error: would delete 2 entries, 10 bytes in" in captured.err
    assert "no terminal to ask on" in captured.err
    assert "hint: the same command with --yes" in captured.err
    assert "quantized/aa" in captured.err, "it says what would go"
    assert kept(cache) == ["aa", "bb"]
    assert run(["calib", "prune", "--stages", "--cache", str(cache), "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"removed": ["quantized/aa", "quantized/bb"], "bytes": 10}
    assert kept(cache) == []


@pytest.mark.parametrize(
    ("answer", "left"), [("y\n", []), ("n\n", ["aa", "bb"]), ("\n", ["aa", "bb"]), ("", ["aa", "bb"])]
)
@pytest.mark.parametrize("as_json", [False, True])
def test_prune_asks_on_a_terminal(
    answer: str, left: list[str], as_json: bool, capsys: Capture, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    assert run(["calib", "prune", "--stages", "--cache", str(cache), *(["--json"] if as_json else [])]) == 0
    captured = capsys.readouterr()
    assert "delete 2 entries, 10 bytes in" in captured.err
    assert kept(cache) == left
    if as_json:
        assert json.loads(captured.out)["bytes"] == (0 if left else 10)
    else:
        assert ("nothing was deleted" in captured.err) == bool(left)
        assert captured.out == ("" if left else "removed 2 entries, 10 bytes\n")


def test_prune_does_not_ask_about_nothing(capsys: Capture, tmp_path: Path) -> None:
    assert run(["calib", "prune", "--older-than", "1", "--cache", str(tmp_path / "none")]) == 0
    assert capsys.readouterr().out == "removed 0 entries, 0 bytes\n"


def test_the_script_ends_with_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mixport", "biuld"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2


def test_an_interrupt_that_a_library_turned_into_an_error_is_still_an_interrupt(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(name: str) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise SystemError("returned a result with an exception set") from error

    monkeypatch.setattr("mixport.records.targets.load_target", interrupted)
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run(["targets", "show", "ort-cpu"]) == ExitCode.INTERRUPTED
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert "the same command goes on where it stopped" in capsys.readouterr().err


def test_an_interrupt_that_a_library_dropped_ends_the_build_at_the_next_stage(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[str] = []

    def stages(options: object, *, note: Callable[[str], None], **rest: object) -> list[object]:
        note("quantize ...")
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)  # what C code does with an exception inside a callback
        reached.append("quantize")
        note("lower ...")
        reached.append("lower")
        return []

    monkeypatch.setattr("mixport.pipeline.build_bundle.build_all", stages)
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run(["build"]) == ExitCode.INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, before)
    assert reached == ["quantize"]
    assert "the same command goes on where it stopped" in capsys.readouterr().err
