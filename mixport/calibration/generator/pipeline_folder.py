"""A folder in diffusers format, read before any of its code paths run: which classes it names, and which
files it loads.

`model_index.json` names a class for each component. Only classes of diffusers and transformers are allowed,
only safetensors weights, and no code inside the folder: loading an unknown folder must not run what its
author wrote.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mixport.records.errors import BadInputError

INDEX_FILE = "model_index.json"

_LIBRARIES = ("diffusers", "transformers")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_WEIGHTS = re.compile(r"(model|diffusion_pytorch_model)(-\d{5}-of-\d{5})?\.safetensors")
_SHARDS = re.compile(r"(model|diffusion_pytorch_model)\.safetensors\.index\.json")
_UNSAFE_WEIGHTS = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl"})
_NOT_LOADED = _UNSAFE_WEIGHTS | {
    ".safetensors",
    ".msgpack",
    ".h5",
    ".onnx",
    ".onnx_data",
    ".pb",
    ".gguf",
    ".flashpack",
    ".md",
    ".png",
}
_MAX_JSON_BYTES = 8 << 20
_MAX_DEPTH = 32
_HINT = "--generator with a folder that DiffusionPipeline.save_pretrained wrote"


@dataclass(frozen=True, kw_only=True)
class PipelineFolder:
    """What a folder in diffusers format says of itself.

    Attributes:
        path: the folder.
        class_name: pipeline class in diffusers.
        components: library and class of each component that is present, by its name.
    """

    path: Path
    class_name: str
    components: Mapping[str, tuple[str, str]]

    def loaded_files(self, *, without: frozenset[str] = frozenset()) -> dict[str, Path]:
        """The files that loading reads, by their name inside the folder; of all components but `without`.

        Raises:
            BadInputError: a component is missing, brings code, or has no safetensors weights.
        """
        files = {INDEX_FILE: self.path / INDEX_FILE}
        for name, (_, class_name) in sorted(self.components.items()):
            if name not in without:
                files |= {
                    f"{name}/{one.name}": one
                    for one in _component_files(self.path / name, class_name=class_name)
                }
        return files

    def scheduler(self) -> tuple[str | None, dict[str, Any]]:
        """Class name and configuration of the pipeline's own scheduler."""
        _, class_name = self.components.get("scheduler", ("", None))
        path = self.path / "scheduler" / "scheduler_config.json"
        return class_name, _read_json(path) if path.is_file() else {}

    def own_size(self) -> tuple[int, int] | None:
        """(height, width) that the pipeline draws where nothing is asked; None where its files do not say."""
        denoiser = next(
            (self.path / name / "config.json" for name in ("unet", "transformer") if name in self.components),
            None,
        )
        vae = self.path / "vae" / "config.json"
        if denoiser is None or not denoiser.is_file() or not vae.is_file():
            return None
        sample, decoder = _read_json(denoiser).get("sample_size"), _read_json(vae)
        # AutoencoderTiny, as in the embedded generator, counts its two halves apart.
        blocks = decoder.get("block_out_channels", decoder.get("decoder_block_out_channels"))
        if not isinstance(sample, int) or not isinstance(blocks, list):
            return None
        side = sample * 2 ** (len(cast("list[object]", blocks)) - 1)
        return side, side


def read_pipeline_folder(path: Path) -> PipelineFolder:
    """Read and check `model_index.json`; components are looked at by `loaded_files`.

    Raises:
        BadInputError: no pipeline, custom code, or a class of another library.
    """
    index = path / INDEX_FILE
    if not index.is_file():
        raise BadInputError(f"generator {path} is no diffusers pipeline: it has no {INDEX_FILE}", hint=_HINT)
    described = _read_json(index)
    class_name = described.get("_class_name")
    if not isinstance(class_name, str) or _NAME.fullmatch(class_name) is None:
        raise BadInputError(
            f"{index}: _class_name is {class_name!r}, allowed a class of diffusers; custom code is never run",
            hint=_HINT,
        )
    components: dict[str, tuple[str, str]] = {}
    for name, value in described.items():
        if name.startswith("_") or not isinstance(value, list):
            continue
        pair = cast("list[object]", value)
        if pair == [None, None]:
            continue
        components[name] = _check_component(index, name, pair)
    return PipelineFolder(path=path, class_name=class_name, components=components)


def _check_component(index: Path, name: str, pair: list[object]) -> tuple[str, str]:
    named = [one for one in pair if isinstance(one, str) and _NAME.fullmatch(one)]
    if len(pair) != 2 or len(named) != 2 or _NAME.fullmatch(name) is None:
        raise BadInputError(f"{index}: component {name!r} is {pair!r}, allowed [library, class]", hint=_HINT)
    library, class_name = named
    if library not in _LIBRARIES and not _is_part_of_diffusers(library):
        raise BadInputError(
            (
                f"{index}: component {name} is {library}.{class_name}, allowed classes of diffusers and "
                "transformers; custom code is never run"
            ),
            hint=_HINT,
        )
    return library, class_name


def _is_part_of_diffusers(library: str) -> bool:
    """Older folders name a module of diffusers.pipelines, such as `stable_diffusion` for its safety
    checker.
    """
    spec = importlib.util.find_spec("diffusers")
    return (
        spec is not None
        and spec.origin is not None
        and (Path(spec.origin).parent / "pipelines" / library).is_dir()
    )


def _component_files(folder: Path, *, class_name: str) -> list[Path]:
    if not folder.is_dir():
        raise BadInputError(f"generator component {folder} is missing", hint=_HINT)
    files = sorted(one for one in folder.iterdir() if one.is_file())
    if any(one.suffix == ".py" for one in files) or (
        class_name.startswith("Auto") and any(_maps_code(one) for one in files)
    ):
        raise BadInputError(
            f"generator component {folder} brings code of its own, which is never run", hint=_HINT
        )
    weights = [one for one in files if _WEIGHTS.fullmatch(one.name)]
    if not weights and any(one.suffix in _UNSAFE_WEIGHTS or one.suffix == ".safetensors" for one in files):
        found = ", ".join(
            one.name for one in files if one.suffix in _UNSAFE_WEIGHTS or one.suffix == ".safetensors"
        )
        raise BadInputError(
            (
                f"generator component {folder} has only {found}, allowed model.safetensors or "
                "diffusion_pytorch_model.safetensors"
            ),
            hint="convert it where you trust it: DiffusionPipeline.from_pretrained(DIR).save_pretrained(OUT)",
        )
    _check_named_weights(files, known=[one.name for one in weights])
    if any(one.name == "config.json" and _names_kernel(_read_json(one)) for one in files):
        raise BadInputError(
            f"generator component {folder} takes its attention from a kernel of the hub, which is never run",
            hint=_HINT,
        )
    return weights + [one for one in files if one.suffix not in _NOT_LOADED and not one.name.startswith(".")]


def _check_named_weights(files: list[Path], *, known: list[str]) -> None:
    """The index of a sharded model, and transformers' `transformers_weights`, may name any file: a pickle, or
    one elsewhere.
    """
    for path in files:
        named: list[object] = []
        if _SHARDS.fullmatch(path.name):
            shards = _read_json(path).get("weight_map")
            named = list(cast("dict[str, object]", shards).values()) if isinstance(shards, dict) else [shards]
        elif path.name == "config.json":
            explicit = _read_json(path).get("transformers_weights")
            named = [explicit] if explicit is not None else []
        strange = next((one for one in named if one not in known), None)
        if strange is not None:
            raise BadInputError(
                f"{path} takes weights from {strange!r}, allowed {', '.join(known) or 'none'} beside it",
                hint=_HINT,
            )


def _names_kernel(config: Mapping[str, object]) -> bool:
    """Whether transformers would fetch compiled code: a repository in place of the name of an implementation,
    here or in a part.
    """
    named = [
        value for name, value in config.items() if name.endswith("attn_implementation") and value is not None
    ]
    parts = [cast("dict[str, object]", value) for value in config.values() if isinstance(value, dict)]
    return any("/" in str(value) for value in named) or any(_names_kernel(part) for part in parts)


def _maps_code(path: Path) -> bool:
    return path.suffix == ".json" and path.name.endswith("config.json") and "auto_map" in _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if (size := path.stat().st_size) > _MAX_JSON_BYTES:
            raise BadInputError(f"{path} has {size} bytes, allowed {_MAX_JSON_BYTES}", hint=_HINT)
        # Scheduler configurations hold infinity, which has no canonical JSON: such numbers stay words,
        # however they are spelled.
        value = json.loads(path.read_bytes(), parse_constant=str, parse_float=_finite_or_word)
    except (OSError, ValueError, RecursionError) as error:
        raise BadInputError(
            f"{path} cannot be read: {(str(error).splitlines() or [''])[0]}", hint=_HINT
        ) from error
    if not isinstance(value, dict):
        raise BadInputError(f"{path} holds a {type(value).__name__}, allowed an object", hint=_HINT)
    if _is_deep(cast("object", value)):
        raise BadInputError(f"{path} is nested more than {_MAX_DEPTH} deep", hint=_HINT)
    return cast("dict[str, Any]", value)


def _finite_or_word(text: str) -> float | str:
    number = float(text)
    return number if math.isfinite(number) else text


def _is_deep(value: object) -> bool:
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [inner for one in level for inner in _inside(one)]
        if not level:
            return False
    return True


def _inside(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(cast("dict[str, object]", value).values())
    return cast("list[object]", value) if isinstance(value, list) else []
