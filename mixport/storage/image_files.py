"""Image files in folders: listing, decoding with bounds, and class folders."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from PIL import Image, ImageOps

from mixport.records.errors import BadInputError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})

#: Change it whenever `decode` gives other pixels for a file.
DECODING = 2
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_DEEP_MODES = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class LabelledFile:
    """A file and the class index of the folder it lies in."""

    path: Path
    label: int


def image_files(folder: Path) -> list[Path]:
    """Image files below a folder, by suffix, in the order of their relative names; hidden ones and linked
    folders left out.

    Raises:
        BadInputError: the folder cannot be read, or holds no image.
    """
    files: list[Path] = []
    for root, folders, names in os.walk(folder, onerror=_cannot_read):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [
            Path(root, name)
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
        ]
    if not files:
        raise BadInputError(
            f"{folder}: no image below it, allowed {', '.join(sorted(SUFFIXES))}",
            hint="check the path with ls",
        )
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def _upright(image: Image.Image) -> Image.Image:
    """Turned and mirrored as its EXIF orientation says; as stored where it has none, or damaged EXIF data."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # as in decode
        return image


def skipped_files(folder: Path) -> dict[str, int]:
    """Suffixes of the files below a folder that `image_files` leaves out, with their number, most first;
    hidden ones do not count.
    """
    found: Counter[str] = Counter()
    for _, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        suffixes = (Path(name).suffix.lower() for name in names if not name.startswith("."))
        found.update(suffix or "no suffix" for suffix in suffixes if suffix not in SUFFIXES)
    return dict(found.most_common())


def decode(path: Path) -> Image.Image:
    """The first frame of a PNG, JPEG, WebP or BMP file as RGB, upright as its EXIF orientation says
    (transparency dropped).

    Raises:
        BadInputError: damaged, another format, more than 8 bits a channel, or more pixels than Pillow's
            limit.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                if image.mode not in _DEEP_MODES:
                    return _upright(image).convert("RGB")
                mode = image.mode
    # Decoders meet hostile bytes with whatever exception comes first.
    except Exception as error:
        raise BadInputError(
            (
                f"image {path} cannot be decoded: {_reason(error)}; allowed PNG, JPEG, WebP and BMP "
                f"below {Image.MAX_IMAGE_PIXELS} pixels"
            ),
            hint=f"remove or replace {path.name}",
        ) from error
    raise BadInputError(
        f"image {path} has mode {mode}, allowed 8 bits a channel", hint="convert it to an 8-bit RGB PNG"
    )


def labelled_files(
    folder: Path, *, class_names: Sequence[str] | None, class_ids: Sequence[str] | None = None
) -> list[LabelledFile]:
    """Images of a folder with one folder a class, in the order of their relative names.

    A folder's name is a class name (case, spaces and underscores do not count), the id of a class in its data
    set (the synsets of ImageNet, n01440764), or else a class index. Where no name is any, the sorted folders
    are the classes in order, if there are as many of them as classes.

    Raises:
        BadInputError: no class folders, names that fit no class, or two folders of one class.
    """
    try:
        entries = sorted(
            (entry for entry in folder.iterdir() if not entry.name.startswith(".")),
            key=lambda entry: entry.name,
        )
    except OSError as error:
        _cannot_read(error)
    stray = next((entry for entry in entries if entry.is_file() and entry.suffix.lower() in SUFFIXES), None)
    if stray is not None:
        raise BadInputError(
            f"{folder}: image {stray.name} lies outside a class folder",
            hint="one folder per class, e.g. DIR/cat/1.png",
        )
    names = [entry.name for entry in entries if entry.is_dir()]
    if not names:
        raise BadInputError(
            f"{folder}: no class folders in it", hint="one folder per class, e.g. DIR/cat/1.png"
        )
    labels = _labels(names, class_names=class_names, class_ids=class_ids, folder=folder)
    repeated = [label for label, count in Counter(labels).items() if count > 1]
    if repeated:
        same = [name for name, label in zip(names, labels, strict=True) if label == repeated[0]]
        raise BadInputError(
            f"{folder}: folders {', '.join(same)} are all class {repeated[0]}",
            hint="keep one folder per class",
        )
    files = [
        LabelledFile(path=path, label=label)
        for name, label in zip(names, labels, strict=True)
        if _has_entries(folder / name)
        for path in image_files(folder / name)
    ]
    if not files:
        raise BadInputError(f"{folder}: its class folders are empty", hint="check the path with ls")
    return files


def _labels(
    names: Sequence[str], *, class_names: Sequence[str] | None, class_ids: Sequence[str] | None, folder: Path
) -> list[int]:
    if class_ids is not None and set(names) <= set(class_ids):
        return [class_ids.index(name) for name in names]
    if class_names is not None:
        by_name = [_index_of(name, class_names, folder) for name in names]
        known = [index for index in by_name if index is not None]
        if len(known) == len(names):
            return known
        if known:
            unknown = [name for name, index in zip(names, by_name, strict=True) if index is None]
            raise BadInputError(
                (
                    f"{folder}: folders that are no class of the model: {_listing(unknown)}; allowed "
                    f"{_listing(class_names)}"
                ),
                hint="rename them, or name the classes with --classes FILE",
            )
    if all(name.isascii() and name.isdigit() for name in names):
        return _indices(names, class_names=class_names, folder=folder)
    if class_names is not None and len(names) == len(class_names):
        return list(range(len(names)))
    wanted = (
        "class names or indices"
        if class_names is None
        else f"the model's {len(class_names)} classes ({_listing(class_names)})"
    )
    raise BadInputError(
        f"{folder}: {len(names)} folders ({_listing(names)}) do not fit {wanted}",
        hint="name folders after classes or class indices, or name the classes with --classes FILE",
    )


def _indices(names: Sequence[str], *, class_names: Sequence[str] | None, folder: Path) -> list[int]:
    indices = [int(name) for name in names]
    if class_names is not None and max(indices) >= len(class_names):
        raise BadInputError(
            f"{folder}: folder {max(indices)} is no class index, allowed 0 to {len(class_names) - 1}",
            hint="rename the folder",
        )
    return indices


def _index_of(name: str, class_names: Sequence[str], folder: Path) -> int | None:
    found = [index for index, class_name in enumerate(class_names) if _loose(class_name) == _loose(name)]
    if len(found) > 1:
        raise BadInputError(
            f"{folder}: folder {name} fits classes {', '.join(map(str, found))}",
            hint="name the folders after class indices",
        )
    return found[0] if found else None


def _loose(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _listing(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" ... ({len(names)} in all)" if len(names) > _SHOWN else "")


def _has_entries(folder: Path) -> bool:
    return any(not entry.name.startswith(".") for entry in folder.iterdir())


def _reason(error: Exception) -> str:
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return "too many pixels"
    return (str(error).splitlines() or [type(error).__name__])[0]


def _cannot_read(error: OSError) -> NoReturn:
    raise BadInputError(
        f"folder {error.filename} cannot be read: {error.strerror}", hint="check the path and its permissions"
    ) from error
