"""Damage that leaves an archive's own checksum valid is caught by the strict decoders."""

import io

import numpy as np
import pytest
from PIL import Image

from hemafast.demo.archives import write_demo_archives
from hemafast.prepare.archive import open_archive
from hemafast.prepare.verify import UnreadableImageError, strict_decoders, verify_image

IMAGES, FLIPPED = 200, 200


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory) -> list[bytes]:
    """Drawn cells in the size and quality of real ones."""
    paths = write_demo_archives(tmp_path_factory.mktemp("corpus"), images=2 * IMAGES, seed=5)
    found = []
    for path in paths:
        archive = open_archive(path)
        with archive.reader() as read:
            for member in archive.members:
                stream = io.BytesIO()
                Image.open(io.BytesIO(read(member))).convert("RGB").save(stream, "JPEG", quality=90, subsampling=0)
                found.append(stream.getvalue())
    return found[:IMAGES]


def flipped(data: bytes, generator: np.random.Generator) -> bytes:
    """The same with bytes at random places replaced by others."""
    content = np.frombuffer(data, np.uint8).copy()
    places = generator.choice(len(content), FLIPPED, replace=False)
    content[places] ^= generator.integers(1, 256, FLIPPED, dtype=np.uint8)
    return content.tobytes()


def refused(images: list[bytes]) -> int:
    count = 0
    with strict_decoders():
        for data in images:
            try:
                verify_image(data, "a.jpg")
            except UnreadableImageError:
                count += 1
    return count


@pytest.mark.slow
def test_flipped_bytes_are_noticed_and_no_clean_image_is_refused(jpegs):
    generator = np.random.default_rng(0)
    assert len(jpegs) == IMAGES
    assert refused(jpegs) == 0
    assert refused([flipped(data, generator) for data in jpegs]) >= 0.98 * IMAGES
