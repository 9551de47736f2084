"""Images from folders and .npz files at the model's input size, and the pixels that the model sees.

Images are uint8 RGB, rows first: [N, H, W, 3]. Sets that may be large are written to disk one image at a
time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mixport.records.calibration_set import Preprocessing
from mixport.records.errors import BadInputError, BadOptionError
from mixport.storage.image_files import decode, image_files, labelled_files
from mixport.storage.npz import MAX_ARRAY_BYTES, NpzReader, open_npz

Pixels = NDArray[np.uint8]

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_MAX_RESIZED_PIXELS = 89_478_485
_NPZ_HINT = "save it with numpy.savez_compressed(FILE, images=uint8 [N,H,W,3], labels=int64 [N])"


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Images with their classes.

    Attributes:
        images: uint8 [N, H, W, 3].
        labels: int64 [N], class indices.
        source: where they came from.
    """

    images: Pixels
    labels: NDArray[np.int64]
    source: str


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """The images chosen from a folder or a .npz file, before any is decoded.

    Attributes:
        path: the folder or file.
        files: every image file of a folder, in order; None for a .npz file.
        chosen: positions of the chosen images, ascending.
    """

    path: Path
    files: tuple[Path, ...] | None
    chosen: tuple[int, ...]


def choose_images(path: Path, *, limit: int | None, seed: int) -> ImageSource:
    """Unlabelled images: all of them, or a seeded choice of `limit` without replacement, in their own order.

    Raises:
        BadInputError: missing, empty, damaged, or neither a folder nor a .npz file with uint8 `images`.
    """
    if path.is_dir():
        files = tuple(image_files(path))
        return ImageSource(path=path, files=files, chosen=_seeded_choice(len(files), limit=limit, seed=seed))
    with _open_images(path) as archive:
        total = _image_count(archive)
    return ImageSource(path=path, files=None, chosen=_seeded_choice(total, limit=limit, seed=seed))


def write_images(
    source: ImageSource,
    path: Path,
    *,
    preprocessing: Preprocessing,
    on_image: Callable[[int], None] | None = None,
) -> None:
    """Write the chosen images to a .npy of uint8 [N, H, W, 3], one at a time; `on_image` is called with 1
    after each.

    Raises:
        BadInputError: an image cannot be used.
        OSError: the disk is full.
    """
    shape = (len(source.chosen), *preprocessing.size, 3)
    write_npy_rows(path, _stream(source, preprocessing=preprocessing), shape=shape, on_row=on_image)


def write_npy_rows(
    path: Path, rows: Iterator[Pixels], *, shape: tuple[int, ...], on_row: Callable[[int], None] | None = None
) -> None:
    """Write a uint8 .npy of known shape row by row.

    Plain writes: on a full disk they raise OSError, where a memory map would kill the process.
    """
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for row in rows:
            stream.write(np.ascontiguousarray(row).data)
            if on_row is not None:
                on_row(1)


def read_labelled(
    path: Path,
    *,
    preprocessing: Preprocessing,
    class_names: Sequence[str] | None,
    class_ids: Sequence[str] | None = None,
    limit: int | None = None,
) -> LabelledImages:
    """Labelled images of a .npz file (`images`, `labels`) or of a folder with one folder a class, see
    `labelled_files`.

    With a limit, images are taken at even distances, so that every class keeps its share.

    Raises:
        BadInputError: missing, damaged, wrong dtype or shape, a label out of range, or above 8 GB.
    """
    if path.is_dir():
        files = labelled_files(path, class_names=class_names, class_ids=class_ids)
        chosen = _even_choice(len(files), limit=limit)
        source = ImageSource(path=path, files=tuple(file.path for file in files), chosen=chosen)
        labels = np.array([file.label for file in files], np.int64)
    else:
        with _open_images(path) as archive:
            total = _image_count(archive)
            labels = _read_labels(
                archive, total=total, classes=None if class_names is None else len(class_names)
            )
        chosen = _even_choice(total, limit=limit)
        source = ImageSource(path=path, files=None, chosen=chosen)
    images = _gather(source, preprocessing=preprocessing)
    return LabelledImages(images=images, labels=labels[list(chosen)], source=str(path))


def normalise(images: Pixels, *, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """uint8 [N, H, W, 3] to the model's input, float32 [N, 3, H, W]: (x / 255 - mean) / std, each step
    rounded to float32.
    """
    unit = images.astype(np.float32) / np.float32(255)
    centred = (unit - np.array(preprocessing.mean, np.float32)) / np.array(preprocessing.std, np.float32)
    return np.ascontiguousarray(centred.transpose(0, 3, 1, 2))


def fit(image: Image.Image, *, preprocessing: Preprocessing) -> Pixels:
    """An RGB image at the input's size, uint8 [H, W, 3]: untouched where it has that size, else resized and
    centre-cropped.

    The shorter side becomes round(size / crop_fraction), in Pillow's antialiased filter.

    Raises:
        BadOptionError: the preprocessing names no known interpolation, or a crop fraction outside (0, 1].
        BadInputError: the image is so long and thin that its resized form exceeds the pixel limit.
    """
    height, width = preprocessing.size
    if image.size == (width, height):
        return np.asarray(image)
    if preprocessing.interpolation not in _RESAMPLING:
        raise BadOptionError(
            f"interpolation is {preprocessing.interpolation!r}, allowed {', '.join(_RESAMPLING)}"
        )
    if not 0.0 < preprocessing.crop_fraction <= 1.0:
        raise BadOptionError(f"crop fraction is {preprocessing.crop_fraction}, allowed above 0 and at most 1")
    resized_size = _resized(image.size, preprocessing=preprocessing)
    if resized_size[0] * resized_size[1] > _MAX_RESIZED_PIXELS:
        raise BadInputError(
            (
                f"image of {image.width}x{image.height} becomes {resized_size[0]}x{resized_size[1]}, "
                f"allowed {_MAX_RESIZED_PIXELS} pixels"
            ),
            hint="remove images that are very long and thin",
        )
    resized = image.resize(resized_size, _RESAMPLING[preprocessing.interpolation])
    left, top = round((resized.width - width) / 2), round((resized.height - height) / 2)
    return np.asarray(resized.crop((left, top, left + width, top + height)))


def _resized(size: tuple[int, int], *, preprocessing: Preprocessing) -> tuple[int, int]:
    width, height = size
    least_height, least_width = (round(side / preprocessing.crop_fraction) for side in preprocessing.size)
    # Integer arithmetic: the side that just fits gets its exact size, the other is rounded down.
    if least_height * width >= least_width * height:
        return least_height * width // height, least_height
    return least_width, least_width * height // width


def _seeded_choice(total: int, *, limit: int | None, seed: int) -> tuple[int, ...]:
    if limit is None or total <= limit:
        return tuple(range(total))
    # Raw words of a counter-based generator: NumPy promises these for ever, unlike the stream of
    # Generator.choice.
    words = np.random.Philox(key=seed).random_raw(total)
    return tuple(sorted(np.argsort(words, kind="stable")[:limit].tolist()))


def _even_choice(total: int, *, limit: int | None) -> tuple[int, ...]:
    count = total if limit is None else min(limit, total)
    return tuple(position * total // count for position in range(count))


def _stream(source: ImageSource, *, preprocessing: Preprocessing) -> Iterator[Pixels]:
    if source.files is not None:
        for position in source.chosen:
            yield fit(decode(source.files[position]), preprocessing=preprocessing)
        return
    wanted = iter(source.chosen)
    following = next(wanted, None)
    with open_npz(source.path, hint=_NPZ_HINT) as archive:
        for position, row in enumerate(archive.rows("images")):
            if position == following:
                yield _fit_array(row, preprocessing=preprocessing)
                following = next(wanted, None)


def _fit_array(image: Pixels, *, preprocessing: Preprocessing) -> Pixels:
    if image.shape == (*preprocessing.size, 3):
        return image
    pixels = image[:, :, 0] if image.shape[2] == 1 else image
    return fit(Image.fromarray(pixels).convert("RGB"), preprocessing=preprocessing)


def _gather(source: ImageSource, *, preprocessing: Preprocessing) -> Pixels:
    shape = (len(source.chosen), *preprocessing.size, 3)
    needed = int(np.prod(shape, dtype=np.int64))
    if needed > MAX_ARRAY_BYTES:
        raise BadInputError(
            f"{source.path}: {shape[0]} images need {needed} bytes, allowed {MAX_ARRAY_BYTES}",
            hint="use fewer images",
        )
    images = np.empty(shape, np.uint8)
    for position, image in enumerate(_stream(source, preprocessing=preprocessing)):
        images[position] = image
    return images


def _open_images(path: Path) -> AbstractContextManager[NpzReader]:
    if not path.exists():
        raise BadInputError(f"images: {path} does not exist", hint="give a folder of images or a .npz file")
    if path.suffix.lower() != ".npz":
        raise BadInputError(
            f"images: {path} is neither a folder nor a .npz file",
            hint="give a folder of images or a .npz file",
        )
    return open_npz(path, hint=_NPZ_HINT)


def _image_count(archive: NpzReader) -> int:
    header = archive.header("images")
    shape = header.shape
    if header.dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3, 4) or 0 in shape:
        raise BadInputError(
            (
                f"{archive.path}: images is {header.dtype} {list(shape)}, allowed uint8 [N, H, W, 3] "
                "with N, H and W above 0"
            ),
            hint=_NPZ_HINT,
        )
    if header.bytes > MAX_ARRAY_BYTES:
        raise BadInputError(
            f"{archive.path}: images has {header.bytes} bytes, allowed {MAX_ARRAY_BYTES}",
            hint="use fewer images",
        )
    return shape[0]


def _read_labels(archive: NpzReader, *, total: int, classes: int | None) -> NDArray[np.int64]:
    header = archive.header("labels")
    if header.dtype != np.int64 or header.shape != (total,):
        raise BadInputError(
            (
                f"{archive.path}: labels is {header.dtype} {list(header.shape)}, allowed int64 "
                f"[{total}], one label an image"
            ),
            hint=_NPZ_HINT,
        )
    labels = archive.read("labels")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes is not None and high >= classes):
        allowed = "0 or more" if classes is None else f"0 to {classes - 1}"
        raise BadInputError(
            f"{archive.path}: labels go from {low} to {high}, allowed {allowed}",
            hint="check --classes FILE and the file",
        )
    return labels
