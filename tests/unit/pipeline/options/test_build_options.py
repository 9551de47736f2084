from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mixport.pipeline.build_plan import resolve
from mixport.pipeline.options.build_options import BuildOptions, command_line
from mixport.records.choices.algorithms import ALGORITHMS
from mixport.records.choices.reconstruction_preset import PRESETS, ReconstructionOptions
from mixport.records.choices.scheme import Scheme
from mixport.records.errors import BadInputError, BadOptionError, ExitCode

NOISE = {"calib": "noise"}


def test_defaults_are_those_of_the_contract() -> None:
    options = BuildOptions()
    assert options.model_dump() == {
        "model": "builtin:cifar10-resnet20",
        "weights": None,
        "random_weights": False,
        "model_arg": {},
        "input_size": None,
        "mean": None,
        "std": None,
        "crop": None,
        "scheme": "w4a8",
        "edge_bits": 8,
        "edge_convention": "brecq",
        "target": ("ort-cpu",),
        "portable": True,
        "calib": "mixup",
        "classes_per_prompt": None,
        "template": None,
        "pairing": "balanced",
        "label_text": "name",
        "generator": "builtin",
        "gen_revision": None,
        "gen_scheduler": None,
        "gen_steps": None,
        "gen_guidance": None,
        "gen_negative": "",
        "gen_size": None,
        "gen_dtype": "auto",
        "gen_batch": None,
        "gen_safety_checker": False,
        "keep_energy": 1.0,
        "keep_statistics": 1.0,
        "classes": None,
        "images": 512,
        "seed": 0,
        "device": "auto",
        "iters": None,
        "reconstruction": "mixport",
        "trained": None,
        "sites": None,
        "mlp_reconstruction": None,
        "eval": None,
        "validation_images": None,
        "gate": ("mismatches==0",),
        "runtime": ("native",),
        "out": None,
        "cache": Path("calib_cache"),
    }


def test_a_build_without_options_is_allowed() -> None:
    assert BuildOptions.of({}) == BuildOptions()


@pytest.mark.parametrize("method", ["distill", "pictures", "mixup:x", "images:"])
def test_a_calibration_method_that_is_none_is_refused_before_the_model_is_loaded(method: str) -> None:
    with pytest.raises(BadOptionError, match=f"--calib (is )?'?{method}"):
        BuildOptions.of({"calib": method})


WIDTHS = [
    ("w2a4", 2000),
    ("w3a8", 2000),
    ("w4a8", 500),
    ("w4a4", 500),
    ("w7a8", 500),
    ("w8a4", 0),
    ("w8a8", 0),
    ("auto:0.1", 2000),
]


def settled(**values: object) -> ReconstructionOptions | None:
    return resolve(BuildOptions.of({**NOISE, **values})).reconstruction


@pytest.mark.parametrize(("scheme", "expected"), WIDTHS)
def test_reconstruction_steps_follow_the_width_of_the_weights(scheme: str, expected: int) -> None:
    options = BuildOptions.of({**NOISE, "scheme": scheme, "device": "cpu"})
    assert options.resolve_algorithm()[1] == expected
    found = resolve(options).reconstruction
    assert (found is None) == (expected == 0)
    if found is not None:
        assert (found.preset.name, found.iters, found.seed, found.device) == ("mixport", expected, 0, "cpu")
        assert found.threads == torch.get_num_threads()


@pytest.mark.parametrize("scheme", [scheme for scheme, _ in WIDTHS])
def test_steps_may_be_asked_for(scheme: str) -> None:
    assert settled(scheme=scheme, iters=0) is None
    learned = settled(scheme=scheme, iters=7, seed=3, device="cpu")
    if scheme == "w8a8":
        assert learned is None, "8-bit codes are never learned"
    else:
        assert learned is not None
        assert (learned.iters, learned.seed) == (7, 3)


def test_edges_alone_may_be_learned() -> None:
    learned = settled(scheme="w8a8", edge_bits=4, iters=7)
    assert learned is not None and learned.iters == 7


@pytest.mark.parametrize("values", [{"iters": 0}, {"scheme": "w8a8"}, {"scheme": "w8a8", "iters": 9}])
def test_what_has_no_effect_on_rounding_to_nearest_is_refused(
    values: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(ALGORITHMS["mixport"], name="other")
    monkeypatch.setattr("mixport.records.choices.algorithms.ALGORITHMS", {**ALGORITHMS, "other": other})
    with pytest.raises(BadOptionError, match="--reconstruction other has no effect with --") as caught:
        BuildOptions.of({**NOISE, **values, "reconstruction": "other"})
    assert caught.value.hint == "--iters N, or leave --reconstruction out"
    with pytest.raises(
        BadOptionError, match=r"--device cuda has no effect with --.* and --calib noise"
    ) as caught:
        BuildOptions.of({**NOISE, **values, "device": "cuda"})
    assert caught.value.hint == "leave --device out"
    assert BuildOptions.of({**values, "device": "cuda"}).device == "cuda", "the generator draws there"
    assert (
        BuildOptions.of({**NOISE, "iters": 9, "device": "cuda", "reconstruction": "other"}).reconstruction
        == "other"
    )


def test_mlps_are_the_recipe_s_matter_unless_somebody_says() -> None:
    def chosen(**values: object) -> bool:
        found = settled(scheme="w4a4", device="cpu", **values)
        assert found is not None
        return found.preset.mlp_reconstruction

    assert {name: chosen(reconstruction=name) for name in PRESETS} == {
        name: name == "aphq" for name in PRESETS
    }
    assert chosen(mlp_reconstruction=True) and not chosen(mlp_reconstruction=False)
    assert not chosen(reconstruction="aphq", mlp_reconstruction=False)


@pytest.mark.parametrize("values", [{"iters": 0}, {"scheme": "w8a8"}])
def test_mlps_cannot_be_learned_where_nothing_is(values: dict[str, object]) -> None:
    with pytest.raises(BadOptionError, match="--mlp-reconstruction has no effect with --") as caught:
        BuildOptions.of({**NOISE, **values, "mlp_reconstruction": True})
    assert caught.value.hint == "--iters N, or leave --mlp-reconstruction out"
    assert settled(**values, mlp_reconstruction=False) is None


def test_the_command_line_says_what_was_asked_of_mlps() -> None:
    assert command_line(BuildOptions()).endswith("resnet20")
    assert command_line(BuildOptions(mlp_reconstruction=True)).endswith(" --mlp-reconstruction")
    assert command_line(BuildOptions(mlp_reconstruction=False)).endswith(" --no-mlp-reconstruction")


def test_a_recipe_that_does_not_exist_is_refused() -> None:
    with pytest.raises(BadOptionError, match="--reconstruction is 'best', allowed nearest") as caught:
        BuildOptions.of({**NOISE, "reconstruction": "best"})
    assert caught.value.exit_code is ExitCode.USAGE
    assert caught.value.hint == "mixport build --help"


def test_a_device_that_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(BadOptionError, match="--device is cuda, and torch finds no CUDA device"):
        settled(device="cuda")
    found = settled()
    assert found is not None and found.device == "cpu"


def test_mixed_widths_are_a_scheme() -> None:
    assert BuildOptions.of({**NOISE, "scheme": "auto:0.10:a4"}).parse_scheme() == Scheme.parse("auto:0.10:a4")
    with pytest.raises(BadOptionError, match=r"--scheme is 'auto:1XB', allowed wWaA"):
        BuildOptions.of({**NOISE, "scheme": "auto:1XB"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scheme": "w1a8"}, "--scheme is 'w1a8'"),
        ({"edge_bits": 9}, "--edge-bits: .*less than or equal to 8, got 9"),
        ({"images": 0}, "--images: .*greater than or equal to 1, got 0"),
        ({"images": "many"}, "--images: .*got 'many'"),
        ({"seed": -1}, "--seed: .*got -1"),
        ({"iters": -1}, "--iters: .*got -1"),
        ({"device": "tpu"}, "--device: .*'auto', 'cpu' or 'cuda', got 'tpu'"),
        ({"input_size": "0"}, "--input-size: sides are in pixels"),
        ({"input_size": "axb"}, "--input-size: .*got 'axb'"),
        ({"input_size": "1x2x3"}, "--input-size: "),
        (
            {"input_size": "32,32"},
            "--input-size: allowed one side or HEIGHTxWIDTH in pixels, such as 224 or 224x160, got '32,32'",
        ),
        (
            {"mean": "123,117,104"},
            "--mean: in units of .* type 0.4824,0.4588,0.4078, and --std divided by 255 too",
        ),
        ({"std": "58.4,57.1,57.4"}, "--std: in units of .* type 0.229,0.2239,0.2251, and --mean"),
        ({"std": "0,0,0"}, "--std: allowed numbers above 0"),
        ({"std": "0.5,-0.5,0.5"}, "--std: allowed numbers above 0"),
        ({"std": "0.5,nan,0.5"}, "--std: allowed numbers above 0"),
        ({"mean": "inf,0,0"}, "--mean: allowed finite numbers"),
        ({"mean": "0.5,0.5"}, "--mean: "),
        ({"std": "a,b,c"}, "--std: .*got 'a'"),
        ({"crop": 0}, "--crop: .*got 0"),
        ({"crop": 1.5}, "--crop: .*got 1.5"),
        ({"model_arg": ["depth"]}, "--model-arg: allowed KEY=VALUE"),
        ({"model_arg": ["=3"]}, "--model-arg: allowed KEY=VALUE"),
        ({"target": []}, "--target names no target"),
        ({"weights": "a.safetensors", "random_weights": True}, "contradict each other"),
        ({"validation_images": 0}, "--validation-images: "),
    ],
)
def test_a_bad_value_is_refused_with_option_and_value(values: dict[str, object], message: str) -> None:
    with pytest.raises(BadOptionError, match=message) as caught:
        BuildOptions.of({**NOISE, **values})
    assert caught.value.exit_code is ExitCode.USAGE
    assert caught.value.hint


def test_an_unknown_runtime_is_refused_as_an_unknown_name() -> None:
    with pytest.raises(BadInputError, match="unknown runtime 'toaster', known: native, x64-avx2, ") as caught:
        BuildOptions.of({**NOISE, "runtime": ["native", "toaster"]})
    assert caught.value.hint == "mixport runtimes list"


def test_an_unknown_option_is_refused_with_the_nearest() -> None:
    with pytest.raises(BadOptionError, match="unknown option 'shceme'") as caught:
        BuildOptions.of({"shceme": "w4a8"})
    assert caught.value.hint == "did you mean 'scheme'?"


@pytest.mark.parametrize(
    ("given", "expected"), [("32", (32, 32)), (64, (64, 64)), ("224x192", (224, 192)), ([8, 16], (8, 16))]
)
def test_input_size_is_one_side_or_two(given: object, expected: tuple[int, int]) -> None:
    assert BuildOptions.of({**NOISE, "input_size": given}).input_size == expected


def test_triples_are_read_from_text_and_lists() -> None:
    options = BuildOptions.of({**NOISE, "mean": "0.5,0.25,0", "std": [1, 0.5, 2]})
    assert (options.mean, options.std) == ((0.5, 0.25, 0.0), (1.0, 0.5, 2.0))


def test_model_arguments_come_as_pairs_or_as_a_table() -> None:
    expected = {"depth": "4", "name": "a=b"}
    assert BuildOptions.of({**NOISE, "model_arg": ["depth=4", "name=a=b"]}).model_arg == expected
    assert BuildOptions.of({**NOISE, "model_arg": {"depth": 4, "name": "a=b"}}).model_arg == expected


def test_one_word_is_a_list_of_one() -> None:
    options = BuildOptions.of({**NOISE, "target": "onnx-int8", "gate": "top1_drop<=1"})
    assert (options.target, options.gate) == (("onnx-int8",), ("top1_drop<=1",))


@pytest.mark.parametrize(
    ("size", "expected"), [((32, 32), 256), ((64, 64), 256), ((65, 64), 32), ((224, 224), 32)]
)
def test_fewer_images_are_validated_for_large_inputs(size: tuple[int, int], expected: int) -> None:
    assert resolve(BuildOptions.of(NOISE)).validation_count(size) == expected
    assert resolve(BuildOptions.of({**NOISE, "validation_images": 7})).validation_count(size) == 7


GATES = ("top1_drop<=1", "top1_float>=90", "top1_quantized>=90")


@pytest.mark.parametrize("gate", GATES)
def test_a_gate_on_accuracy_needs_labelled_images(gate: str) -> None:
    options = BuildOptions.of({**NOISE, "gate": ["mismatches==0", gate]})
    with pytest.raises(BadOptionError, match=f"--gate '{gate}' needs labelled images") as caught:
        options.parse_gates()
    assert caught.value.exit_code is ExitCode.USAGE
    assert caught.value.hint == f"mixport build --eval DIR --gate '{gate}' ..."
    found = BuildOptions.of({**NOISE, "gate": ["mismatches==0", gate], "eval": "photos"}).parse_gates()
    assert [one.text for one in found] == ["mismatches==0", gate]


@pytest.mark.parametrize(
    "gate", ["agreement>=0.9", "sqnr_db>=20", "size_ratio<=1", "size_bytes<=9", "mismatches==0"]
)
def test_other_gates_need_none(gate: str) -> None:
    assert [one.text for one in BuildOptions.of({**NOISE, "gate": gate}).parse_gates()] == [gate]


def test_the_command_line_repeats_the_drawing() -> None:
    options = BuildOptions.of(
        {
            "images": 64,
            "classes_per_prompt": 3,
            "template": "a drawing of {classes}",
            "pairing": "far",
            "generator": "stabilityai/sd-turbo",
            "gen_size": "512x256",
            "gen_guidance": 3.5,
            "gen_safety_checker": True,
            "keep_energy": 0.5,
        }
    )
    text = command_line(options)
    assert text == (
        "mixport build builtin:cifar10-resnet20 --images 64 --classes-per-prompt 3 --template 'a "
        "drawing of {classes}' --pairing far "
        "--generator stabilityai/sd-turbo --gen-guidance 3.5 --gen-size 512x256 --gen-safety-checker "
        "--keep-energy 0.5"
    )


def test_the_command_line_repeats_the_build() -> None:
    options = BuildOptions.of(
        {
            "model": "timm:resnet18",
            "random_weights": True,
            "model_arg": ["depth=4", "name=two words"],
            "input_size": "64x32",
            "mean": "0.5,0.5,0.5",
            "calib": "noise",
            "target": ["ort-cpu", "onnx-int8"],
            "images": 64,
            "iters": 0,
            "out": Path("dist/demo"),
        }
    )
    text = command_line(options)
    assert text == (
        "mixport build timm:resnet18 --random-weights --model-arg depth=4 --model-arg 'name=two "
        "words' --input-size 64x32 "
        "--mean 0.5,0.5,0.5 --target ort-cpu --target onnx-int8 --calib noise --images 64 --iters 0 "
        "--out dist/demo"
    )
    assert shlex.split(text)[:2] == ["mixport", "build"]
