"""A file's first bytes say what it is."""

import io
import zipfile

import imagecodecs
import numpy as np
import pytest
import tifffile

from hemafast.preparation.sources.sniff import HEAD_BYTES, READABLE, UNREADABLE, image_format, kind_of

PILLOW = ["JPEG", "PNG", "TIFF", "BMP", "WEBP", "JPEG2000", "GIF", "AVIF", "MPO"]


def _zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("a.txt", "text")
    return stream.getvalue()


@pytest.mark.parametrize("kind", PILLOW)
def test_what_pillow_writes_is_recognised(draw, encode, kind):
    named = image_format(encode(draw(0), kind)[:HEAD_BYTES])
    assert named == ("JPEG" if kind == "MPO" else kind)
    assert named in READABLE


@pytest.mark.parametrize(
    ("form", "make"),
    [
        ("TIFF", lambda pixels: _tiff(pixels, bigtiff=True)),
        ("TIFF", lambda pixels: _tiff(pixels, byteorder=">")),
        ("JPEG2000", lambda pixels: imagecodecs.jpeg2k_encode(pixels, codecformat="j2k")),
        ("JPEG2000", lambda pixels: imagecodecs.jpeg2k_encode(pixels, codecformat="jp2")),
        ("JPEG XL", imagecodecs.jpegxl_encode),
        ("JPEG XR", imagecodecs.jpegxr_encode),
    ],
)
def test_what_other_encoders_write_is_recognised(draw, form, make):
    assert image_format(bytes(make(draw(0)))[:HEAD_BYTES]) == form


def _tiff(pixels: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, **options)
    return stream.getvalue()


MARKS = {
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "AVIF": b"\0\0\0\x20ftypmif1\0\0\0\0mif1avif",
    "DICOM": bytes(128) + b"DICM\x02\0\0\0UL",
    "PSD": b"8BPS\0\x01\0\0\0\0\0\0\0\x03",
    "CZI": b"ZISRAWFILE\0\0\0\0\0\0",
    "LIF": b"\x70\0\0\0\x10\0\0\0\x2a\0\0\0",
    "ND2": b"\xda\xce\xbe\x0a\0\0\0\0",
    "FITS": b"SIMPLE  =                    T",
    "EXR": b"\x76\x2f\x31\x01\x02\0\0\0",
    "HDR": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe",
    "PNM": b"P6\n# written by hand\n3 2\n255\n",
}


@pytest.mark.parametrize("form", MARKS)
def test_an_image_that_cannot_be_read_still_counts_as_one(form):
    assert image_format(MARKS[form]) == form
    assert form in UNREADABLE or form in READABLE
    assert kind_of(MARKS[form], "a.jpg") != "unknown file"


OTHERS = [
    ("empty file", "a.jpg", b""),
    ("text", "README.txt", b"Cells of two donors.\n"),
    ("text", "a.jpg", "Zellen zweier Spender, gefärbt\n".encode("latin-1")),
    ("text", "a.txt", "Zellen, gefärbt".encode("utf-16")),
    ("text", "BM.txt", b"BM is bone marrow, PB is blood.\n"),
    ("text", "P1.txt", b"P1 is the first patient.\n"),
    ("table (csv)", "labels.CSV", b"path,label\na.jpg,monocyte\n"),
    ("JSON file", "data/labels.json", b'{"a": 1}'),
    ("PDF", "paper.pdf", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n"),
    ("zip archive", "more.zip", _zip()),
    ("Excel table", "labels.xlsx", _zip()),
    ("gzip archive", "a.tar.gz", b"\x1f\x8b\x08\0"),
    ("tar archive", "a.tar", b"name" + bytes(253) + b"ustar\0"),
    ("video", "a.mp4", b"\0\0\0\x18ftypmp42\0\0\0\0"),
    ("video", "a.avi", b"RIFF\0\0\0\0AVI LIST"),
    ("SVG drawing", "plot.svg", b'<?xml version="1.0"?>\n<svg width="1">'),
    ("HDF5 file", "a.h5", b"\x89HDF\r\n\x1a\n\0\0"),
    ("NumPy array", "a.npy", b"\x93NUMPY\x01\0v\0"),
    ("unknown file", "a.jpg", np.random.default_rng(0).bytes(HEAD_BYTES)),
    ("unknown file", "a.png", bytes(100)),
]


@pytest.mark.parametrize(("words", "name", "head"), OTHERS)
def test_what_is_no_image_is_named_in_words(words, name, head):
    assert image_format(head) == ""
    assert kind_of(head[:HEAD_BYTES], name) == words


def test_an_image_is_named_in_words(draw, encode):
    assert kind_of(encode(draw(0)), "a.txt") == "PNG picture"
    assert kind_of(MARKS["DICOM"], "a") == "DICOM picture"
