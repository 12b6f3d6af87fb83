"""Damage in a JPEG that no decoder notices leaves a seam; pictures, noise, borders and small images have none."""

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from hemafast.demo.cells import ACEVEDO_20, draw_cell
from hemafast.preparation.images.image_checks import strict_decoders, verify_image
from hemafast.preparation.images.kinds import UnreadableImageError
from hemafast.preparation.images.seams import refuse_seam


@pytest.fixture(scope="module")
def cells():
    generator = np.random.default_rng(3)
    return [draw_cell(name, ACEVEDO_20, generator) for name in ("monocyte", "eosinophil", "neutrophil_banded")]


def as_jpeg(pixels, quality=90) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def damaged(jpeg: bytes, generator) -> bytes | None:
    """With one changed byte that no decoder notices, and that changes a part of the picture; None if it is noticed."""
    content = bytearray(jpeg)
    content[generator.integers(len(jpeg) // 3, len(jpeg) - 2)] ^= int(generator.integers(1, 256))
    try:
        pixels = simplejpeg.decode_jpeg(bytes(content), strict=True).astype(int)
    except ValueError:
        return None
    wrong = np.abs(pixels - simplejpeg.decode_jpeg(jpeg)).max(axis=2) > 20
    return bytes(content) if wrong.mean() > 0.1 else None


def test_most_of_the_damage_that_no_decoder_notices_is_found(cells):
    generator = np.random.default_rng(0)
    tries = (damaged(as_jpeg(cells[number % 3]), generator) for number in range(400))
    unnoticed = [jpeg for jpeg in tries if jpeg]
    assert len(unnoticed) > 20
    found = []
    for jpeg in unnoticed:
        try:
            with strict_decoders():
                verify_image(jpeg, "a.jpg")
        except UnreadableImageError as error:
            assert error.kind == "seam"
            assert "of 255 from row" in str(error)
            found.append(jpeg)
    assert len(found) > 0.7 * len(unnoticed)


@pytest.mark.parametrize("quality", [30, 60, 95])
def test_a_sound_picture_has_none(cells, draw, quality):
    shapes = (64, 60), (128, 130), (33, 40), (360, 363)
    for pixels in (*cells, *(draw(seed, *shape) for seed in range(5) for shape in shapes)):
        refuse_seam(simplejpeg.decode_jpeg(as_jpeg(pixels, quality)))


def test_a_plain_border_is_none(cells):
    for rows, colour in ((slice(0, 48), 0), (slice(200, None), 255)):
        pixels = cells[0].copy()
        pixels[rows] = colour
        refuse_seam(simplejpeg.decode_jpeg(as_jpeg(pixels)))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (130, 127), (128, 128), (129, 131), (130, 128), (131, 128)])
def test_images_of_any_size_are_looked_at_as_far_as_they_go(height, width):
    refuse_seam(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_a_seam_is_named_by_its_row_and_shift(cells):
    pixels = cells[0].astype(int)
    pixels[80:] -= 25
    with pytest.raises(UnreadableImageError, match=r"colours shift by 2\d of 255 from row 80 on"):
        refuse_seam(pixels.clip(0, 255).astype(np.uint8))
