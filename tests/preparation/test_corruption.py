"""Damage that leaves an archive's own checksums valid is caught by the strict decoders."""

import io
import zipfile

import numpy as np
import pytest
from packs import originals
from PIL import Image

from hemafast.config import PrepareConfig
from hemafast.demo.archives import write_demo_archives
from hemafast.preparation.build import prepare

IMAGES, FLIPPED = 200, 200


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory) -> list[bytes]:
    """Drawn cells in the size and quality of real ones."""
    folder = tmp_path_factory.mktemp("corpus")
    write_demo_archives(folder, images=2 * IMAGES, seed=5)
    found = []
    for data in list(originals(folder).values())[:IMAGES]:
        stream = io.BytesIO()
        Image.open(io.BytesIO(data)).convert("RGB").save(stream, "JPEG", quality=90, subsampling=0)
        found.append(stream.getvalue())
    return found


def flipped(data: bytes, generator: np.random.Generator) -> bytes:
    """The same with bytes at random places replaced by others."""
    content = np.frombuffer(data, np.uint8).copy()
    places = generator.choice(len(content), FLIPPED, replace=False)
    content[places] ^= generator.integers(1, 256, FLIPPED, dtype=np.uint8)
    return content.tobytes()


@pytest.mark.slow
def test_flipped_bytes_are_quarantined_and_no_clean_image_is(jpegs, tmp_path):
    """The flips come before the archive is packed: its own checksums are valid."""
    generator = np.random.default_rng(0)
    assert len(jpegs) == IMAGES
    with zipfile.ZipFile(tmp_path / "D.zip", "w") as file:
        for number, data in enumerate(jpegs):
            file.writestr(f"basophil/clean_{number}.jpg", data)
            file.writestr(f"monocyte/flipped_{number}.jpg", flipped(data, generator))
        for number, data in enumerate(jpegs[:20]):  # so that there is a class to train on besides, whatever is caught
            file.writestr(f"eosinophil/turned_{number}.jpg", turned(data))
    config = PrepareConfig(source=tmp_path, output=tmp_path / "prepared", pack_sizes=(64,), max_quarantined=1)
    left = [image.file.rpartition("/")[2] for image in prepare(config).quarantine]
    assert sum(name.startswith("flipped") for name in left) >= 0.98 * IMAGES
    assert not [name for name in left if not name.startswith("flipped")]


def turned(data: bytes) -> bytes:
    stream = io.BytesIO()
    Image.open(io.BytesIO(data)).rotate(90).save(stream, "JPEG", quality=90)
    return stream.getvalue()
