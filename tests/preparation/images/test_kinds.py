"""What becomes of each kind of image: converted in one documented way on every path, or quarantined by name."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from nvidia.dali import Pipeline, fn
from PIL import Image, ImageOps

from hemafast.config import PrepareConfig
from hemafast.data.dataset import open_dataset
from hemafast.data.graph import GraphShape
from hemafast.data.loader import eval_loader
from hemafast.preparation.build import prepare
from hemafast.preparation.images.depth import fixed
from hemafast.preparation.images.image_checks import strict_decoders, verify_image
from hemafast.preparation.images.kinds import CONVERTED_KINDS, QUARANTINED_KINDS, UnreadableImageError
from hemafast.preparation.pixels import decode_image

WIDTH, HEIGHT = 66, 60
DEEP = ("scaled", "re-encoded")


def by_dali(encoded: bytes) -> np.ndarray:
    """The pixels that training from files sees."""
    with Pipeline(1, 1, device_id=None, prefetch_queue_depth=1) as pipeline:
        pipeline.set_outputs(decode_image(fn.external_source(name="encoded"), "cpu"))
    pipeline.feed_input("encoded", [np.frombuffer(encoded, np.uint8)])
    return np.asarray(pipeline.run()[0].at(0))


def _png16(pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel; Pillow writes only grey ones."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, channels = pixels.shape
    colour = {1: 0, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    data = zlib.compress(rows)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _tiff16(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, photometric="rgb" if pixels.ndim == 3 else "minisblack")
    return stream.getvalue()


def _oriented(pixels: np.ndarray, kind: str, orientation: int) -> bytes:
    stream, image = io.BytesIO(), Image.fromarray(pixels)
    if kind == "TIFF":
        image.save(stream, kind, tiffinfo={274: orientation})
    else:
        exif = Image.Exif()
        exif[274] = orientation
        image.save(stream, kind, exif=exif, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}))
    return stream.getvalue()


TURNS = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda p: np.rot90(p, 1),
}


def _converted(draw, encode) -> dict[str, tuple[str, bytes, np.ndarray, tuple[str, ...]]]:
    """Name, bytes, the RGB pixels they stand for, and the kinds they are."""
    rgb = draw(0, WIDTH, HEIGHT)
    grey, alpha = rgb[..., 0], draw(5, WIDTH, HEIGHT)[..., :1]
    repeated = np.repeat(grey[..., None], 3, axis=2)
    wide = rgb.astype(np.uint16) * 257 - np.minimum(rgb, 100) + np.uint16(50) * (rgb < 200)
    scaled = np.floor(wide / 257 + 0.5).astype(np.uint8)
    indexed = Image.fromarray(rgb).quantize(40)
    colours = np.asarray(indexed.convert("RGB"))
    transparent = io.BytesIO()
    indexed.save(transparent, "PNG", transparency=3)
    return {
        "grey png": ("a.png", encode(grey), repeated, ("grey",)),
        "grey tiff": ("a.tif", encode(grey, "TIFF"), repeated, ("grey",)),
        "grey bmp": ("a.bmp", encode(grey, "BMP"), repeated, ("grey",)),
        "rgba png": ("a.png", encode(np.dstack([rgb, alpha])), rgb, ("alpha",)),
        "rgba tiff": ("a.tiff", encode(np.dstack([rgb, alpha]), "TIFF"), rgb, ("alpha",)),
        "rgba lzw tiff": ("a.tiff", encode(np.dstack([rgb, alpha]), "TIFF", compression="tiff_lzw"), rgb, ("alpha",)),
        "grey and alpha": (
            "a.png",
            encode(Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha[..., 0])])),
            repeated,
            ("grey", "alpha"),
        ),
        "palette": ("a.png", encode(indexed), colours, ("palette",)),
        "palette bmp": ("a.bmp", encode(indexed, "BMP"), colours, ("palette",)),
        "palette with graded transparency": (
            "a.png",
            encode(indexed, transparency=bytes(range(0, 240, 6))),
            colours,
            ("palette", "alpha"),
        ),
        "a colour that is transparent": (
            "a.png",
            encode(rgb, transparency=tuple(map(int, rgb[0, 0]))),
            rgb,
            ("alpha",),
        ),
        "a grey that is transparent": (
            "a.png",
            encode(grey, transparency=int(grey[0, 0])),
            repeated,
            ("grey", "alpha"),
        ),
        "orientation zero": ("a.png", _oriented(rgb, "PNG", 0), rgb, ()),
        "orientation nine": ("a.tiff", _oriented(rgb, "TIFF", 9), rgb, ("re-encoded",)),
        "palette with transparency": ("a.png", transparent.getvalue(), colours, ("palette", "alpha")),
        "16-bit grey png": ("a.png", _png16(wide[..., :1]), np.repeat(scaled[..., :1], 3, axis=2), ("grey", *DEEP)),
        "16-bit grey tiff": ("a.tif", _tiff16(wide[..., 0]), np.repeat(scaled[..., :1], 3, axis=2), ("grey", *DEEP)),
        "16-bit rgb png": ("a.png", _png16(wide), scaled, DEEP),
        "16-bit rgb tiff": ("a.tif", _tiff16(wide), scaled, DEEP),
        "16-bit rgba png": ("a.png", _png16(np.dstack([wide, wide[..., :1]])), scaled, ("alpha", *DEEP)),
        "misnamed": ("a.jpg", encode(rgb), rgb, ("misnamed",)),
        "no such suffix": ("a.jpeg", encode(rgb, "BMP"), rgb, ("misnamed",)),
        "odd sizes": ("a.png", encode(draw(7, 61, 67)), draw(7, 61, 67), ()),
    } | {
        f"{kind} turned {number}": (
            f"a.{kind.lower()}",
            _oriented(rgb, kind, number),
            turn(rgb),
            ("rotated",) if number > 1 else (),
        )
        for kind in ("PNG", "TIFF")
        for number, turn in TURNS.items()
    }


NAMES = list(_converted(lambda *a: np.zeros((HEIGHT, WIDTH, 3), np.uint8), lambda *a, **k: b""))


@pytest.fixture(scope="module")
def converted(draw, encode):
    return _converted(draw, encode)


def _seen(kinds):
    """Kinds without the one that depends on what DALI and its libraries make of a form."""
    return {kind for kind in kinds if kind != "re-encoded"}


@pytest.mark.parametrize("name", NAMES)
def test_a_convertible_image_is_what_the_policy_says_to_the_decoder_of_training(converted, name):
    file, data, expected, kinds = converted[name]
    header, kept = verify_image(data, file, fixed(16))
    assert _seen(header.kinds) == _seen(kinds)
    assert (kept == data) == ("re-encoded" not in header.kinds)
    assert CONVERTED_KINDS.keys() >= set(kinds)
    assert (header.height, header.width) == expected.shape[:2]
    np.testing.assert_array_equal(by_dali(kept), expected)
    np.testing.assert_array_equal(header.reference, expected)


@pytest.mark.parametrize("orientation", TURNS)
def test_a_turned_jpeg_is_turned_by_both_decoders(draw, orientation):
    data = _oriented(draw(0, WIDTH, HEIGHT), "JPEG", orientation)
    header, kept = verify_image(data, "a.jpg")
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(by_dali(kept), expected)
    assert (header.height, header.width) == expected.shape[:2]


def test_every_convertible_image_is_alike_packed_and_from_its_file(tmp_path, converted, make_archive):
    extra = {f"basophil/{n:02d}_{file}": data for n, (file, data, *_) in enumerate(converted.values())}
    make_archive(tmp_path / "D", {"monocyte": 4}, extra=extra)
    prepared = prepare(PrepareConfig(source=tmp_path, output=tmp_path / "prepared", pack_sizes=(64,)))
    assert not prepared.quarantine
    manifest = prepared.files.manifest
    expected = {frozenset(_seen(kinds)) for *_, kinds in converted.values()}
    assert {frozenset(_seen(kinds.split("+"))) - {""} for kinds in manifest["kind"]} == expected
    assert set(manifest.loc[manifest["kind"] != "", "verdict"]) == {"converted"}
    dataset = open_dataset(prepared.folder)
    for split in ("train", "val"):
        samples = dataset.samples(split)
        packed, files = (
            np.concatenate(
                [
                    batch.images.numpy()
                    for batch in eval_loader(samples, shape=GraphShape("cpu", kind, 64, 56, 8, 1)).epoch()
                ]
            )
            for kind in ("packed", "files")
        )
        assert np.abs(packed.astype(int) - files).max() <= 2  # a window of a file is scaled at once


def _frames(draw, kind: str) -> bytes:
    stream = io.BytesIO()
    pages = [Image.fromarray(draw(seed)) for seed in range(3)]
    pages[0].save(stream, kind, save_all=True, append_images=pages[1:])
    return stream.getvalue()


def _lying_png(data: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return data[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + data[33:]


def _lying_jpeg(data: bytes) -> bytes:
    start = data.index(b"\xff\xc0")
    return data[: start + 5] + struct.pack(">HH", 60000, 60000) + data[start + 9 :]


def _lying_bmp(data: bytes) -> bytes:
    return data[:18] + struct.pack("<ii", 60000, 60000) + data[26:]


QUARANTINED = {
    "empty": ("empty", lambda draw, encode: b""),
    "text": ("not an image", lambda draw, encode: b"<html>404 Not Found</html>"),
    "noise": ("not an image", lambda draw, encode: np.random.default_rng(0).bytes(5000)),
    "animated gif": ("several frames", lambda draw, encode: _frames(draw, "GIF")),
    "animated webp": ("several frames", lambda draw, encode: _frames(draw, "WEBP")),
    "heic": ("unreadable form", lambda draw, encode: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500)),
    "dicom": ("unreadable form", lambda draw, encode: bytes(128) + b"DICM\x02\0\0\0UL" + bytes(500)),
    "tiny": ("not a cell", lambda draw, encode: encode(draw(0, 1, 1))),
    "line": ("not a cell", lambda draw, encode: encode(draw(0, 1, 400))),
    "strip": ("not a cell", lambda draw, encode: encode(draw(0, 20, 81))),
    "slide": ("too large", lambda draw, encode: encode(draw(0, 2000, 600), "JPEG")),
    "ribbon": ("too large", lambda draw, encode: encode(draw(0, 6000, 40))),
    "pages": ("several frames", lambda draw, encode: _frames(draw, "TIFF")),
    "animated png": ("several frames", lambda draw, encode: _frames(draw, "PNG")),
    "cmyk jpeg": ("CMYK", lambda draw, encode: encode(Image.fromarray(draw(0)).convert("CMYK"), "JPEG")),
    "cmyk tiff": ("CMYK", lambda draw, encode: encode(Image.fromarray(draw(0)).convert("CMYK"), "TIFF")),
    "lab": ("pixel layout", lambda draw, encode: encode(Image.fromarray(draw(0)).convert("LAB"), "TIFF")),
    "huge png": ("too large", lambda draw, encode: _lying_png(encode(draw(0)))),
    "huge jpeg": ("too large", lambda draw, encode: _lying_jpeg(encode(draw(0), "JPEG"))),
    "huge bmp": ("too large", lambda draw, encode: _lying_bmp(encode(draw(0), "BMP"))),
    "cut jpeg": ("damaged", lambda draw, encode: encode(draw(0), "JPEG")[:-200]),
    "cut png": ("damaged", lambda draw, encode: encode(draw(0))[:-200]),
    "cut tiff": ("damaged", lambda draw, encode: encode(draw(0), "TIFF")[:-2000]),
    "bad crc png": ("damaged", lambda draw, encode: encode(draw(0)).replace(b"IDAT", b"IDAT\x01", 1)),
}


@pytest.mark.parametrize("name", QUARANTINED)
def test_what_cannot_be_trusted_is_quarantined_by_its_kind(draw, encode, name):
    kind, make = QUARANTINED[name]
    with strict_decoders(), pytest.raises(UnreadableImageError) as caught:
        verify_image(make(draw, encode), "a.png")
    assert caught.value.kind == kind
    assert kind in QUARANTINED_KINDS
    assert "\n" not in str(caught.value)


def _with_two_orientations(draw) -> bytes:
    """A JPEG whose two EXIF blocks contradict each other: decoders differ in which they believe."""
    first, second = (_oriented(draw(0, 90, 70), "JPEG", orientation) for orientation in (1, 6))
    start = second.index(b"\xff\xe1")
    block = second[start : start + 2 + int.from_bytes(second[start + 2 : start + 4], "big")]
    start = first.index(b"\xff\xe1")
    after = start + 2 + int.from_bytes(first[start + 2 : start + 4], "big")
    return first[:after] + block + first[after:]


def test_an_image_that_dali_reads_in_another_shape_is_quarantined(tmp_path, draw, make_archive):
    extra = {"basophil/two.jpg": _with_two_orientations(draw)}
    make_archive(tmp_path / "D", {"monocyte": 9}, extra=extra)
    config = PrepareConfig(source=tmp_path, output=tmp_path / "prepared", pack_sizes=(32,), max_quarantined=1)
    (left,) = prepare(config).quarantine
    assert (left.file, left.kind) == ("quarantined/D/basophil/two.jpg", "decoders disagree")


def test_file_verdict_and_reason_stand_in_the_quarantine_list(tmp_path, draw, encode, make_archive):
    extra = {f"basophil/{name}.png": make(draw, encode) for name, (_, make) in QUARANTINED.items()}
    make_archive(tmp_path / "D", {"monocyte": 4}, extra=extra)
    prepared = prepare(
        PrepareConfig(source=tmp_path, output=tmp_path / "prepared", pack_sizes=(32,), max_quarantined=1)
    )
    lines = (prepared.folder / "quarantine.csv").read_text().splitlines()
    assert lines[0] == "file,verdict,reason"
    assert {line.split(",")[0]: line.split(",")[1] for line in lines[1:]} == {
        f"quarantined/D/basophil/{name}.png": kind for name, (kind, _) in QUARANTINED.items()
    }
    for image in prepared.quarantine:
        assert image.reason
        assert (prepared.folder / image.file).is_file()
