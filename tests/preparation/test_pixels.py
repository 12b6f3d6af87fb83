"""Encoded bytes to squares: exact where nothing is scaled, and one bad image harms no other."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps, UnidentifiedImageError

from hemafast.preparation.images.kinds import UnreadableImageError
from hemafast.preparation.pixels import SquareDecoder as Decoder
from hemafast.preparation.pixels import centre_windows

SIZE, BATCH = 64, 8


class SquareDecoder:
    """Decodes to the largest centre square at one size."""

    def __init__(self, size: int, batch: int, threads: int) -> None:
        self._decoder = Decoder((size,), batch, threads)

    def decode(self, data):
        sizes = np.array([_size(image) for image in data]).reshape(-1, 2)
        found = self._decoder.decode(data, centre_windows(sizes[:, 0], sizes[:, 1], sizes.min(axis=1, initial=9999)))
        return [one if isinstance(one, UnreadableImageError) else one.squares[0].copy() for one in found]


def _size(data: bytes) -> tuple[int, int]:
    try:
        return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).size
    except UnidentifiedImageError:
        return (SIZE, SIZE)


@pytest.fixture(scope="module")
def decoder():
    return SquareDecoder(SIZE, BATCH, 2)


def _by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


FORMATS = {
    "JPEG": ("JPEG", {}),
    "JPEG without subsampling": ("JPEG", {"subsampling": 0, "quality": 95}),
    "progressive JPEG": ("JPEG", {"progressive": True}),
    "PNG": ("PNG", {}),
    "BMP": ("BMP", {}),
    "raw TIFF": ("TIFF", {}),
    "LZW TIFF": ("TIFF", {"compression": "tiff_lzw"}),
    "deflate TIFF": ("TIFF", {"compression": "tiff_adobe_deflate"}),
}


@pytest.mark.parametrize(("kind", "options"), FORMATS.values(), ids=FORMATS)
def test_an_image_of_the_right_size_is_what_pillow_decodes(decoder, draw, encode, kind, options):
    data = [encode(draw(seed, SIZE, SIZE), kind, **options) for seed in range(3)]
    for square, encoded in zip(decoder.decode(data), data, strict=True):
        assert square.dtype == np.uint8
        np.testing.assert_array_equal(square, _by_pillow(encoded))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_alpha_is_dropped_and_not_blended(decoder, draw, encode, kind):
    pixels = draw(0, SIZE, SIZE)
    alpha = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 1), dtype=np.uint8)
    (square,) = decoder.decode([encode(np.dstack([pixels, alpha]), kind)])
    np.testing.assert_array_equal(square, pixels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_grey_is_repeated(decoder, draw, encode, kind):
    data = encode(draw(0, SIZE, SIZE)[..., 0], kind)
    (square,) = decoder.decode([data])
    np.testing.assert_array_equal(square, _by_pillow(data))


@pytest.mark.parametrize(("width", "height"), [(96, 64), (64, 96), (91, 64), (64, 1000)])
def test_the_centre_square_is_kept_where_the_short_side_fits(decoder, draw, encode, width, height):
    pixels = draw(0, width, height)
    (square,) = decoder.decode([encode(pixels)])
    top, left = (height - SIZE) / 2, (width - SIZE) / 2
    centres = [pixels[y : y + SIZE, x : x + SIZE] for y in _around(top) for x in _around(left)]
    assert any(np.array_equal(square, centre) for centre in centres)


def _around(offset: float) -> set[int]:
    """The whole offset, or its two neighbours: which one an odd margin gives is the library's choice."""
    return {int(np.floor(offset)), int(np.ceil(offset))}


@pytest.mark.parametrize(("width", "height"), [(128, 128), (192, 160), (40, 40), (50, 77), (360, 363)])
def test_scaling_agrees_with_pillow(decoder, draw, encode, width, height):
    # Smooth, because the side that is cut may be shifted by half a pixel.
    pixels = np.asarray(Image.fromarray(draw(3, width, height)).filter(ImageFilter.GaussianBlur(2)))
    (square,) = decoder.decode([encode(pixels)])
    side = min(width, height)
    box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    expected = np.asarray(Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box))
    assert np.abs(square.astype(int) - expected).mean() < 2


def test_no_images_are_no_squares(decoder):
    assert decoder.decode([]) == []


@pytest.mark.parametrize("bad", [0, 3, 4])
def test_the_bad_image_of_a_batch_is_named_and_the_others_keep_their_places(draw, encode, bad):
    decoder = SquareDecoder(SIZE, BATCH, 2)
    pixels = [draw(seed, SIZE, SIZE) for seed in range(5)]
    data = [encode(image) for image in pixels]
    data[bad] = b"no image at all"
    found = decoder.decode(data)
    assert isinstance(found[bad], UnreadableImageError)
    assert "decode" in str(found[bad])
    assert "\n" not in str(found[bad])
    for position in set(range(5)) - {bad}:
        np.testing.assert_array_equal(found[position], pixels[position])
    # and it goes on working afterwards
    np.testing.assert_array_equal(decoder.decode([encode(pixels[bad])])[0], pixels[bad])


def test_a_batch_of_bad_images_is_all_bad(encode, draw):
    decoder = SquareDecoder(SIZE, BATCH, 2)
    assert all(isinstance(square, UnreadableImageError) for square in decoder.decode([b"x", b"yy", b"zzz"]))
    assert decoder.decode([encode(draw(0))])[0].shape == (SIZE, SIZE, 3)


def test_order_is_kept_over_batches_of_every_size(decoder, draw, encode):
    pixels = [draw(seed, SIZE, SIZE) for seed in range(BATCH * 2)]
    data = [encode(image) for image in pixels]
    start = 0
    for count in (BATCH, 1, 3, 4):
        for square, image in zip(
            decoder.decode(data[start : start + count]), pixels[start : start + count], strict=True
        ):
            np.testing.assert_array_equal(square, image)
        start += count


def test_squares_stay_as_they_are_while_more_are_decoded(decoder, draw, encode):
    pixels = [draw(seed, SIZE, SIZE) for seed in range(12)]
    kept = [decoder.decode([encode(image)])[0] for image in pixels]
    for square, image in zip(kept, pixels, strict=True):
        np.testing.assert_array_equal(square, image)


def test_a_square_does_not_depend_on_its_neighbours_or_threads(decoder, draw, encode):
    data = [encode(draw(seed, 75 + seed, 81), "JPEG") for seed in range(6)]
    together = decoder.decode(data)
    alone = [SquareDecoder(SIZE, 1, 1).decode([image])[0] for image in data]
    np.testing.assert_array_equal(together, alone)


def test_an_orientation_tag_turns_the_pixels(decoder, draw, encode):
    pixels = draw(0, SIZE, SIZE)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6
    data = encode(image, "JPEG", exif=exif, quality=95, subsampling=0)
    (square,) = decoder.decode([data])
    np.testing.assert_array_equal(square, np.rot90(_by_pillow(data), -1))


def test_what_was_decoded_stays_while_others_are_decoded_and_after_a_broken_image(draw, encode):
    decoder = Decoder((SIZE,), BATCH, 2)
    data = [encode(draw(seed, 90, 80), "JPEG") for seed in range(3 * BATCH)]
    windows = centre_windows([90] * BATCH, [80] * BATCH, [80] * BATCH)
    held = [decoder.decode(data[start : start + BATCH], windows) for start in (0, BATCH)]
    copies = [[one.squares[0].copy() for one in batch] for batch in held]
    for _ in range(5):
        decoder.decode(data[2 * BATCH :], windows)
    decoder.decode([data[0][:200]], windows[:1])
    decoder.decode(data[2 * BATCH :], windows)
    for batch, before in zip(held, copies, strict=True):
        for one, square in zip(batch, before, strict=True):
            np.testing.assert_array_equal(one.squares[0], square)
