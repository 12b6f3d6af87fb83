"""Damage and absurd claims are noticed; which kinds there are is in test_kinds.py."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from hemafast.preparation.images.image_checks import decode_reference, strict_decoders, verify_image
from hemafast.preparation.images.kinds import UnreadableImageError


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP"])
def test_a_truncated_image_is_refused(draw, encode, kind, share):
    data = encode(draw(0), kind)
    with pytest.raises(UnreadableImageError):
        verify_image(data[: int(len(data) * share)], "a")


def test_flipped_bytes_in_a_jpeg_are_noticed(draw, encode):
    generator = np.random.default_rng(7)
    refused = 0
    for seed in range(40):
        data = np.frombuffer(encode(draw(seed, 200, 180), "JPEG", quality=92), np.uint8).copy()
        start = len(data) // 2
        data[start : start + 200] = generator.integers(0, 256, 200)
        try:
            verify_image(data.tobytes(), "a.jpg")
        except UnreadableImageError:
            refused += 1
    assert refused >= 39


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate"])
def test_damage_in_a_compressed_tiff_is_noticed(draw, encode, compression):
    data = bytearray(encode(draw(0), "TIFF", compression=compression))
    middle = len(data) // 2
    data[middle : middle + 200] = np.random.default_rng(0).bytes(200)
    with pytest.raises(UnreadableImageError):
        verify_image(bytes(data), "a.tif")


def _png_that_claims(width: int, height: int) -> bytes:
    """A few bytes of PNG whose header promises a large image."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(60000, 60000), (8001, 8000), (2**31 - 1, 1)])
def test_absurd_dimensions_are_refused_before_decoding(monkeypatch, width, height):
    def load(self):
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", load)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(UnreadableImageError, match=r"px by its header|exceeds limit"):
        verify_image(_png_that_claims(width, height), "a.png")


def test_a_warning_of_a_decoder_is_a_refusal(encode, draw):
    data = _with_cut_tag(encode(draw(0), "TIFF"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with strict_decoders(), pytest.raises(UnreadableImageError):
            verify_image(data, "a.tif")
        verify_image(data, "a.tif")  # the filters are as they were


def _with_cut_tag(data: bytes) -> bytes:
    """A TIFF that decodes whole, but one of whose tags lies past its end: Pillow warns of corrupt EXIF data."""
    image = Image.open(io.BytesIO(data))
    tags = image.tag_v2
    tags[33432] = "a notice that needs more than four bytes"
    stream = io.BytesIO()
    image.save(stream, "TIFF", tiffinfo=tags)
    content = bytearray(stream.getvalue())
    order = "<" if content[:2] == b"II" else ">"
    entry = content.index(struct.pack(order + "HH", 33432, 2))
    content[entry + 8 : entry + 12] = struct.pack(order + "I", len(content) + 1000)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        Image.open(io.BytesIO(bytes(content))).load()
    assert told  # else this file shows nothing
    return bytes(content)


def test_a_deprecation_in_the_decoder_is_no_damage(monkeypatch, draw, encode):
    load = PngImagePlugin.PngImageFile.load

    def deprecated(self):
        warnings.warn_explicit("old", DeprecationWarning, "Image.py", 1, module="PIL.Image")
        return load(self)

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", deprecated)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with strict_decoders():
            verify_image(encode(draw(0)), "a.png")


def test_a_lack_of_memory_is_not_taken_for_damage(monkeypatch, draw, encode):
    def fail(self):
        raise MemoryError

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(MemoryError):
        verify_image(encode(draw(0)), "a.png")


def test_the_reference_of_a_large_image_is_not_kept_but_can_be_had_again(draw, encode):
    small, large = encode(draw(0, 60, 50)), encode(np.zeros((1001, 1000, 3), np.uint8))
    (kept, _), (dropped, _) = verify_image(small, "a.png"), verify_image(large, "a.png")
    np.testing.assert_array_equal(kept.reference, decode_reference(small))
    assert dropped.reference is None
    assert decode_reference(large).shape == (1001, 1000, 3)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_jpeg_is_decoded_as_pillow_does_it(draw, encode, options):
    for pixels in (draw(0, 61, 50), draw(1, 61, 50)[..., 0]):
        data = encode(pixels, "JPEG", **options)
        header, kept = verify_image(data, "a.jpg")
        assert kept is data
        np.testing.assert_array_equal(header.reference, decode_reference(data))


def test_a_refusal_reads_the_same_each_time():
    with pytest.raises(UnreadableImageError) as caught:
        verify_image(b"garbage" * 100, "a.png")
    assert " at 0x" not in str(caught.value)


@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_colours_beside_alpha_are_handed_on_in_contiguous_memory(draw, encode, kind):
    """They are hashed and scaled next, and each would copy them."""
    pixels = draw(0)
    seen = np.dstack([pixels, np.full(pixels.shape[:2], 7, np.uint8)])
    header, _ = verify_image(encode(seen, kind), f"a.{kind.lower()}")
    np.testing.assert_array_equal(header.reference, pixels)
    assert header.reference.flags.c_contiguous
