"""Turn MODEL (builtin:NAME, timm:ARCH, package.module:factory, FILE.pt2) into a float torch module with its
preprocessing.
"""

# torch leaves parts of its own signatures without types (fork_rng, manual_seed).
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mixport.model.class_file import Classes, read_classes
from mixport.model.load_state import load_into
from mixport.model.programs.program_file import load_program
from mixport.model.request import ModelRequest, PreprocessingOverrides
from mixport.model.shipped.builtin_models import CIFAR10_CLASSES, builtin_weights, create_builtin
from mixport.model.timm_model import create_timm, merge_branches
from mixport.model.torchscript import check_eager, is_torchscript
from mixport.model.weights_file import check_finite, check_plain, read_state_dict
from mixport.records import fingerprint
from mixport.records.calibration_set import Preprocessing
from mixport.records.decision import Decision
from mixport.records.errors import BadInputError, BadOptionError

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: What a model should state of its preprocessing, by the names that timm's pretrained_cfg and our overrides
#: share.
_STATED = ("input_size", "mean", "std")


@dataclass(frozen=True, kw_only=True)
class FloatModel:
    """A float model in eval mode, on the CPU.

    Attributes:
        module: takes float32 [N, 3, H, W], gives one tensor.
        name: short name for folders and reports.
        source: MODEL as given.
        sha256: of the state dict (names, shapes, values).
        origin: what else its source brings: SHA-256 of a program's file, the arguments of a factory. Equal
            weights may run another graph.
        preprocessing: pixels to input.
        class_names: in index order, None when unknown.
        glosses: a short meaning a class, in index order; None where there are none.
        class_ids: what the data set calls each class, as its folders are named, in index order; None where it
            has no such names.
        input_shape: [1, 3, H, W].
        notes: what was done to the model before capture.
        one_image: the module takes a batch of one only.
        assumed: fields of the preprocessing that neither the model nor the user states.
    """

    module: nn.Module
    name: str
    source: str
    sha256: str
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None
    input_shape: tuple[int, int, int, int]
    origin: str = ""
    notes: tuple[Decision, ...] = ()
    one_image: bool = False
    glosses: tuple[str, ...] | None = None
    class_ids: tuple[str, ...] | None = None
    assumed: tuple[str, ...] = ()

    @property
    def float_bytes(self) -> int:
        """Size of the float model: parameters and buffers of its state dict, 4 bytes each; what has two names
        there counts once.
        """
        tensors = {id(value): value for value in self.module.state_dict(keep_vars=True).values()}
        return 4 * sum(value.numel() for value in tensors.values() if value.is_floating_point())


def open_model(request: ModelRequest) -> FloatModel:
    """The model that is asked for, its outputs counted against the class names of a file. Raises as
    `load_model`.
    """
    return load_model(
        request.source,
        weights=request.weights,
        random_weights=request.random_weights,
        seed=request.seed,
        model_args=request.args,
        classes=request.classes,
        overrides=request.overrides,
    )


def load_model(
    spec: str,
    *,
    weights: Path | None = None,
    random_weights: bool = False,
    seed: int = 0,
    model_args: Mapping[str, str] | None = None,
    classes: Path | None = None,
    overrides: PreprocessingOverrides | None = None,
) -> FloatModel:
    """Load MODEL.

    Args:
        spec: builtin:NAME, timm:ARCH, package.module:factory or FILE.pt2.
        weights: state dict file.
        random_weights: seeded random weights instead.
        seed: of the random weights.
        model_args: options for the factory, Python literals or strings.
        classes: JSON list of class names.
        overrides: preprocessing that replaces the model's own.

    Raises:
        BadInputError, BadOptionError, UnsupportedModelError: with what to type next.
    """
    overrides = overrides or PreprocessingOverrides()
    if weights is not None and random_weights:
        raise BadOptionError("--weights and --random-weights exclude each other", hint="drop one of them")
    arguments = {key: _literal(value) for key, value in (model_args or {}).items()}
    if spec.startswith("builtin:") and weights is None and not random_weights:
        weights = builtin_weights(spec.removeprefix("builtin:"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)  # torch takes no larger one
        made = _make(
            spec,
            size=overrides.input_size,
            weights=weights,
            random_weights=random_weights,
            arguments=arguments,
        )
    module = made.module
    check_eager(module, source=spec)
    loaded: tuple[Decision, ...] = ()
    if weights is not None:
        state = read_state_dict(weights)
        loaded = (*state.notes, *load_into(module, state.tensors, source=str(weights)))
    check_plain(module, source=spec)
    if not spec.endswith(".pt2"):
        module = module.eval().requires_grad_(False).float()
    check_finite(module, source=str(weights or spec))
    digest = fingerprint.sha256_arrays(
        {name: value.detach().cpu().numpy() for name, value in module.state_dict().items()}
    )
    notes = (*loaded, *made.notes)
    if spec.startswith("timm:"):
        module, merged = merge_branches(module)
        notes = (*notes, *merged)
    preprocessing = _override(made.preprocessing, overrides)
    _check_preprocessing(preprocessing, source=spec)
    known = read_classes(classes) if classes is not None else made.classes
    height, width = preprocessing.size
    return FloatModel(
        module=module,
        name=_short_name(spec),
        source=spec,
        sha256=digest,
        origin=fingerprint.sha256_file(Path(spec))
        if spec.endswith(".pt2")
        else repr(sorted(arguments.items())),
        preprocessing=preprocessing,
        class_names=known.names if known is not None else None,
        glosses=known.glosses if known is not None else None,
        class_ids=known.ids if known is not None else None,
        input_shape=(1, 3, height, width),
        notes=notes,
        one_image=made.one_image,
        assumed=tuple(name for name in made.assumed if getattr(overrides, name) is None),
    )


@dataclass(frozen=True, kw_only=True)
class _Made:
    """A model as its source gives it; `classes` where they are known, the others as in FloatModel."""

    module: nn.Module
    preprocessing: Preprocessing
    classes: Classes | None = None
    assumed: tuple[str, ...] = ()
    notes: tuple[Decision, ...] = ()
    one_image: bool = False


def _make(
    spec: str,
    *,
    size: tuple[int, int] | None,
    weights: Path | None,
    random_weights: bool,
    arguments: dict[str, Any],
) -> _Made:
    if spec.startswith("builtin:"):
        preprocessing = Preprocessing(size=(32, 32), mean=_IMAGENET_MEAN, std=_IMAGENET_STD)
        module = create_builtin(spec.removeprefix("builtin:"), arguments=arguments)
        return _Made(module=module, preprocessing=preprocessing, classes=Classes(names=CIFAR10_CLASSES))
    if spec.startswith("timm:"):
        pretrained = weights is None and not random_weights
        module, preprocessing, classes = create_timm(
            spec.removeprefix("timm:"), size=size, pretrained=pretrained, arguments=arguments
        )
        return _Made(module=module, preprocessing=preprocessing, classes=classes)
    if spec.endswith(".pt2"):
        if weights is not None or random_weights or arguments:
            raise BadOptionError(
                "a .pt2 program brings its own weights",
                hint=f"mixport build {spec} without --weights and --model-arg",
            )
        program = load_program(Path(spec))
        preprocessing = Preprocessing(size=program.size, mean=_IMAGENET_MEAN, std=_IMAGENET_STD)
        return _Made(
            module=program.module,
            preprocessing=preprocessing,
            assumed=_STATED if program.any_size else ("mean", "std"),
            notes=program.notes,
            one_image=program.one_image,
        )
    if ":" in spec:
        return _factory(spec, arguments=arguments)
    if Path(spec).is_file():
        what = "an archive of torch.jit.save" if is_torchscript(Path(spec)) else "a file of weights"
        raise BadInputError(
            f"MODEL is {spec!r}, {what}, allowed builtin:NAME, timm:ARCH, package.module:factory or FILE.pt2",
            hint="name the factory of its nn.Module, with its weights as --weights FILE.safetensors",
        )
    raise BadInputError(
        f"MODEL is {spec!r}, allowed builtin:NAME, timm:ARCH, package.module:factory or FILE.pt2",
        hint="mixport build timm:resnet18 --random-weights --calib noise",
    )


@contextmanager
def _current_folder_on_path() -> Generator[None]:
    """As `python -m` does: the console script alone does not see modules of the folder it runs in."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _factory(spec: str, *, arguments: dict[str, Any]) -> _Made:
    module_name, _, attribute = spec.partition(":")
    try:
        with _current_folder_on_path():
            factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise BadInputError(
            f"MODEL {spec}: {error}", hint="package.module:factory must be importable from here (PYTHONPATH)"
        ) from error
    try:
        module = factory(**arguments)
    except TypeError as error:
        raise BadInputError(
            f"MODEL {spec}: the factory refused its arguments: {error}", hint="--model-arg KEY=VALUE"
        ) from error
    except Exception as error:  # the user's own code may raise anything
        raise BadInputError(
            f"MODEL {spec}: the factory raised {type(error).__name__}: {error}",
            hint=f"python -c 'import {module_name}; {module_name}.{attribute}()'",
        ) from error
    if not isinstance(module, nn.Module):
        raise BadInputError(
            f"MODEL {spec}: the factory returned {type(module).__name__}, expected torch.nn.Module",
            hint="name a callable that returns the model itself",
        )
    config: Any = getattr(module, "pretrained_cfg", None) or {}
    try:
        _, height, width = config.get("input_size", (3, 224, 224))
        mean_r, mean_g, mean_b = config.get("mean", _IMAGENET_MEAN)
        std_r, std_g, std_b = config.get("std", _IMAGENET_STD)
        preprocessing = Preprocessing(
            size=(int(height), int(width)),
            mean=(float(mean_r), float(mean_g), float(mean_b)),
            std=(float(std_r), float(std_g), float(std_b)),
            crop_fraction=float(config.get("crop_pct", 1.0)),
            interpolation=str(config.get("interpolation", "bicubic")),
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise BadInputError(
            (
                f"MODEL {spec}: pretrained_cfg is {config!r}, allowed input_size (3, H, W), mean and std "
                f"of three numbers: {error}"
            ),
            hint="--input-size, --mean and --std state them on the command line",
        ) from error
    return _Made(
        module=module,
        preprocessing=preprocessing,
        assumed=tuple(name for name in _STATED if name not in config),
    )


def _override(preprocessing: Preprocessing, overrides: PreprocessingOverrides) -> Preprocessing:
    return Preprocessing(
        size=overrides.input_size or preprocessing.size,
        mean=overrides.mean or preprocessing.mean,
        std=overrides.std or preprocessing.std,
        crop_fraction=overrides.crop_fraction or preprocessing.crop_fraction,
        interpolation=preprocessing.interpolation,
    )


def _check_preprocessing(preprocessing: Preprocessing, *, source: str) -> None:
    """What a factory's pretrained_cfg states is in the units of --mean and --std too."""
    mean, std = preprocessing.mean, preprocessing.std
    if not all(np.isfinite(value) and value > 0.0 for value in std):
        raise BadInputError(
            f"MODEL {source}: its std is {std}, allowed numbers above 0", hint="--std R,G,B states it"
        )
    if not np.isfinite(mean).all() or max(mean) > 1.0:
        raise BadInputError(
            f"MODEL {source}: its mean is {mean}, allowed units of [0, 1]",
            hint="divide mean and std by 255, in pretrained_cfg or as --mean",
        )


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _short_name(spec: str) -> str:
    if spec.endswith(".pt2"):
        return Path(spec).stem
    return spec.rpartition(":")[2].replace("/", "_")
