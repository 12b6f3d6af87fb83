"""Validation pixels beside torchvision's: the reference's resize and centre crop of the same JPEG files."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from hemafast.config import PrepareConfig
from hemafast.data.dataset import open_dataset
from hemafast.data.graph import GraphShape
from hemafast.data.loader import eval_loader
from hemafast.data.samples import Samples
from hemafast.preparation.build import prepare

LARGEST, MEAN = 3, 0.5
"""Levels of 255 by which a pixel may differ, and all of them on average: both sides round, at other places."""


@pytest.fixture(scope="module")
def jpegs(make_archive, tmp_path_factory) -> Samples:
    """Validation images of 280 px, wholly kept, packed at 256."""
    folder = tmp_path_factory.mktemp("parity")
    make_archive(folder / "source" / "Lab.zip", {"monocyte": 14, "basophil": 10}, kind="JPEG", size=(280, 280))
    settings = PrepareConfig(
        source=folder / "source", output=folder / "prepared", field_of_view="whole", val_fraction=0.5
    )
    return open_dataset(prepare(settings).folder).samples("val")


def _batches(samples, source, image_size):
    shape = GraphShape("cpu", source, 256, image_size, 8, 2)
    return torch.cat([batch.images for batch in eval_loader(samples, shape=shape).epoch()]).numpy().astype(int)


@pytest.mark.parametrize("source", ["packed", "resident", "files"])
def test_validation_pixels_are_those_of_torchvision(jpegs, source):
    reference = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()])
    expected = np.stack([reference(Image.open(path).convert("RGB")).numpy() for path in jpegs.paths])
    difference = np.abs(_batches(jpegs, source, 224) - expected)
    assert difference.max() <= LARGEST
    assert difference.mean() <= MEAN


def test_scaled_validation_pixels_are_alike_from_all_sources(jpegs):
    """A file is scaled once, a square for the second time: 280 to 128 px at once, or by way of 256."""
    packed, files = (_batches(jpegs, source, 128) for source in ("packed", "files"))
    difference = np.abs(packed - files)
    assert difference.mean() < 3
    assert difference.max() < 40


def test_the_reference_can_tell_another_crop(jpegs):
    """The tolerance is no blindfold: one pixel to the side is far outside it."""
    whole = _batches(jpegs, "packed", 224)
    assert np.abs(whole[..., 1:] - whole[..., :-1]).mean() > 4 * MEAN
