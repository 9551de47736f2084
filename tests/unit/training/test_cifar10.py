import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training import cifar10


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,600 images in two tiles: image i has i's bytes in its corner."""
    folder = tmp_path_factory.mktemp("cifar")
    images = np.zeros((2000, 32, 32, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(2000) // 256
    images[:, 0, 0, 1] = np.arange(2000) % 256
    images[:, 3, 5, 2] = 77
    with zipfile.ZipFile(folder / "cifar10_train_webp.zip", "w") as archive:
        for tile in range(2):
            part = (
                images[tile * 1000 : (tile + 1) * 1000]
                .reshape(25, 40, 32, 32, 3)
                .transpose(0, 2, 1, 3, 4)
                .reshape(800, 1280, 3)
            )
            buffer = io.BytesIO()
            Image.fromarray(part).save(buffer, "WEBP", lossless=True, exact=True)
            archive.writestr(f"tiles_{tile:03d}.webp", buffer.getvalue())
        archive.writestr("labels.json", json.dumps({"count": 1600, "labels": [i % 10 for i in range(1600)]}))
    return folder


def test_tiles_become_images_in_order(data: Path) -> None:
    images, labels = cifar10.training_images(data)
    held_out, held_out_labels = cifar10.held_out_images(data)
    everything = torch.cat([images, held_out])
    assert everything.shape == (1600, 3, 32, 32)
    assert len(held_out) == cifar10.HELD_OUT
    number = everything[:, 0, 0, 0].long() * 256 + everything[:, 1, 0, 0].long()
    assert number.tolist() == list(range(1600))
    assert (everything[:, 2, 3, 5] == 77).all()
    assert torch.cat([labels, held_out_labels]).tolist() == [i % 10 for i in range(1600)]


def test_crops_and_flips_depend_on_the_generator_alone() -> None:
    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    one = cifar10.crop_and_flip(images, generator=torch.Generator().manual_seed(5))
    two = cifar10.crop_and_flip(images, generator=torch.Generator().manual_seed(5))
    other = cifar10.crop_and_flip(images, generator=torch.Generator().manual_seed(6))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_without_padding_an_image_is_itself_or_its_mirror_image() -> None:
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    changed = cifar10.crop_and_flip(images, generator=torch.Generator().manual_seed(0), padding=0)
    same = (changed == images).flatten(1).all(1)
    mirrored = (changed == images.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 10 < int(same.sum()) < 54


def test_normalise_agrees_with_the_formula() -> None:
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    wanted = (images.double() / 255 - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(
        1, 3, 1, 1
    )
    torch.testing.assert_close(
        cifar10.normalise(images, mean=mean, std=std).double(), wanted, rtol=0, atol=1e-5
    )
