"""Files of many forms: (name, bytes, the pixels they stand for), built by several encoders and by hand."""

import io
import struct
import zlib

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, ImageOps

WIDTH, HEIGHT = 66, 60


def pillow(pixels, kind, **options) -> bytes:
    stream, image = io.BytesIO(), pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(stream, kind, **options)
    return stream.getvalue()


def tiff(pixels: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, **options)
    return stream.getvalue()


def pages(*images: np.ndarray, reduced: bool) -> bytes:
    """A TIFF of several pages; with `reduced`, the later ones say that they are small copies."""
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        for number, pixels in enumerate(images):
            writer.write(pixels, photometric="rgb", subfiletype=int(reduced and number > 0))
    return stream.getvalue()


def _swapped_tags(data: bytes) -> bytes:
    """The same TIFF with the tags of width and height in the other order."""
    (first,) = struct.unpack_from("<I", data, 4)
    at = data.index(struct.pack("<HH", 256, 4), first)
    return data[:at] + data[at + 12 : at + 24] + data[at : at + 12] + data[at + 24 :]


def _wrong_length(data: bytes) -> bytes:
    """The same TIFF, whose strip claims a hundred bytes."""
    at = data.index(struct.pack("<HHI", 279, 4, 1)) + 8
    return data[:at] + struct.pack("<I", 100) + data[at + 4 :]


def _empty_text(data: bytes) -> bytes:
    """The same TIFF, whose program has a name of no letters."""
    at = data.index(struct.pack("<HHI", 305, 2, 12)) + 4
    return data[:at] + bytes(4) + data[at + 4 :]


def _void(data: bytes) -> bytes:
    """The same TIFF, whose sample format says that its values have no known meaning."""
    at = data.index(struct.pack("<HHI", 305, 2, 12))  # the program, which comes before it
    return data[:at] + struct.pack("<HHIHH", 339, 3, 1, 4, 0) + data[at + 12 :]


def _with_tag(data: bytes, code: int, values: tuple[int, ...]) -> bytes:
    """The same TIFF with other values of a tag of short numbers."""
    at = data.index(struct.pack("<HHI", code, 3, len(values))) + 8
    where = at if len(values) <= 2 else struct.unpack_from("<I", data, at)[0]
    return data[:where] + struct.pack(f"<{len(values)}H", *values) + data[where + 2 * len(values) :]


def _wrong_png_in_tiff(rgb: np.ndarray) -> bytes:
    """A TIFF of one strip, a PNG that has more data than pixels."""
    data, strip = tiff(rgb, photometric="rgb", compression="png"), png(lines(rgb) + bytes(9), 8, 2)
    place, length = (data.index(struct.pack("<HHI", code, 4, 1)) + 8 for code in (273, 279))
    changed = data[:place] + struct.pack("<I", len(data)) + data[place + 4 :]
    return changed[:length] + struct.pack("<I", len(strip)) + changed[length + 4 :] + strip


def planes(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def rgb_of(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def read_by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def read_by_tifffile(data: bytes) -> np.ndarray:
    return tifffile.imread(io.BytesIO(data))


def png(pixels: bytes, bits: int, colour: int, extra: bytes = b"", *, interlaced: bool = False) -> bytes:
    """A PNG of lines that have their filter bytes."""
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, colour, 0, 0, int(interlaced))
    chunks = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _with_exif(data: bytes, entry: bytes) -> bytes:
    """A JPEG with EXIF data of one entry."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\1" + entry + bytes(4)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


def _in_png(data: bytes, kind: bytes, content: bytes) -> bytes:
    """A PNG with another chunk behind its header."""
    return data[:33] + chunk(kind, content) + data[33:]


def _for_iphones(data: bytes) -> bytes:
    return data[:8] + chunk(b"CgBI", b"P\0 \2") + data[8:]


def lines(pixels: np.ndarray) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in pixels)


def packed_bits(levels: np.ndarray, bits: int) -> np.ndarray:
    """Levels of a few bits, in rows that begin at a byte."""
    unpacked = np.unpackbits(levels[..., None], axis=2)[..., 8 - bits :].reshape(len(levels), -1)
    return np.packbits(unpacked, axis=1)


def seven_passes(pixels: np.ndarray) -> bytes:
    """The lines of an interlaced PNG."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    return b"".join(lines(pixels[y::down, x::right]) for y, x, down, right in passes)


def bmp(bits: int, rows: bytes, *, masks: tuple[int, ...] = (), compression: int = 0, palette: bytes = b"") -> bytes:
    extra = struct.pack(f"<{len(masks)}I", *masks) + palette
    begin = 54 + len(extra)
    sizes = struct.pack("<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, bits, compression, len(rows), 0, 0, len(palette) // 4, 0)
    return b"BM" + struct.pack("<IHHI", begin + len(rows), 0, 0, begin) + sizes + extra + rows


def _upwards(rows: np.ndarray) -> bytes:
    """Rows of a BMP from the last to the first, each filled up to four bytes."""
    flat = rows[::-1].reshape(len(rows), -1).view(np.uint8)
    return np.pad(flat, ((0, 0), (0, -flat.shape[1] % 4))).tobytes()


def _run_lengths(levels: np.ndarray) -> bytes:
    rows = (b"".join(bytes((1, level)) for level in row.tolist()) + b"\0\0" for row in levels[::-1])
    return b"".join(rows) + b"\0\1"


def tiffs(rgb: np.ndarray, alpha: np.ndarray) -> dict[str, tuple[bytes, np.ndarray]]:
    grey, bit = rgb[..., 0], rgb[..., 0] > 128
    black_or_white = rgb_of(bit.astype(np.uint8) * 255)
    rgba = np.dstack([rgb, alpha])
    indexed = Image.fromarray(rgb).quantize(40)
    jpeg = pillow(rgb, "TIFF", compression="jpeg", quality=90)
    subsampled = tiff(rgb, photometric="rgb", compression="jpeg", compressionargs={"level": 80}, subsampling=(2, 2))
    webp = tiff(rgb, photometric="rgb", compression="webp", compressionargs={"level": 80})
    compressed = ("zlib", "lzw", "packbits", "zstd", "lzma", "png")
    found = {f"tiff {kind}": (tiff(rgb, photometric="rgb", compression=kind), rgb) for kind in compressed}
    bits = {f"tiff {kind}": (pillow(Image.fromarray(bit), "TIFF", compression=kind), black_or_white)
            for kind in ("group3", "group4", "tiff_ccitt")}  # fmt: skip
    opaque = np.maximum(alpha.astype(np.int64), 1)[..., None]
    divided = np.where(alpha[..., None] == 0, rgb, np.minimum(rgb.astype(np.int64) * 255 // opaque, 255)).astype(
        np.uint8
    )
    return found | bits | {
        "tiff": (tiff(rgb, photometric="rgb"), rgb),
        "tiff predictor": (tiff(rgb, photometric="rgb", compression="zlib", predictor=True), rgb),
        "tiff big endian": (tiff(rgb, photometric="rgb", byteorder=">"), rgb),
        "tiff jpeg": (jpeg, read_by_tifffile(jpeg)),
        "tiff jpeg subsampled": (subsampled, read_by_tifffile(subsampled)),
        "tiff jpeg2000": (tiff(rgb, photometric="rgb", compression="jpeg2000"), rgb),
        "tiff webp": (webp, read_by_tifffile(webp)),
        "tiff planar": (tiff(planes(rgb), photometric="rgb", planarconfig="separate"), rgb),
        "tiff planar lzw": (tiff(planes(rgb), photometric="rgb", planarconfig="separate", compression="lzw"), rgb),
        "bigtiff": (tiff(rgb, photometric="rgb", bigtiff=True), rgb),
        "bigtiff lzw": (tiff(rgb, photometric="rgb", bigtiff=True, compression="lzw"), rgb),
        "tiff tiles": (tiff(rgb, photometric="rgb", tile=(32, 32)), rgb),
        "tiff strips": (tiff(rgb, photometric="rgb", rowsperstrip=7, compression="zlib"), rgb),
        "tiff white is zero": (tiff(grey, photometric="miniswhite"), rgb_of(255 - grey)),
        "tiff 1 bit": (tiff(bit, photometric="minisblack"), black_or_white),
        "tiff 1 bit, white is zero": (tiff(~bit, photometric="miniswhite"), black_or_white),
        "tiff grey": (tiff(grey, photometric="minisblack"), rgb_of(grey)),
        "tiff rgba": (tiff(rgba, photometric="rgb", extrasamples=["unassalpha"]), rgb),
        "tiff premultiplied": (tiff(rgba, photometric="rgb", extrasamples=["assocalpha"]), divided),
        "tiff grey and alpha": (
            tiff(np.dstack([grey, alpha]), photometric="minisblack", extrasamples=[2], planarconfig="contig"),
            rgb_of(grey),
        ),
        "tiff palette": (pillow(indexed, "TIFF"), np.asarray(indexed.convert("RGB"))),
        "tiff with a thumbnail": (pages(rgb, rgb[::2, ::2].copy(), reduced=True), rgb),
        "tiff of ImageJ": (tiff(grey, imagej=True), rgb_of(grey)),
        "tiff of OME": (tiff(rgb, photometric="rgb", ome=True), rgb),
        "tiff turned": (pillow(rgb, "TIFF", tiffinfo={274: 6}), np.rot90(rgb, -1)),
        "tiff tiles flipped": (
            tiff(rgb, photometric="rgb", tile=(32, 32), extratags=[(274, 3, 1, 2, True)]), rgb[:, ::-1]
        ),
        "tiff of an empty text": (_empty_text(tiff(rgb, photometric="rgb")), rgb),
        "tiff of void values": (_void(tiff(rgb, photometric="rgb")), rgb),
        "tiff with a wrong length": (_wrong_length(tiff(rgb, photometric="rgb")), rgb),
        "tiff 16 bits": (tiff(rgb.astype(np.uint16) * 257, photometric="rgb"), rgb),
        "tiff 16 bits planar": (
            tiff(planes(rgb.astype(np.uint16) * 257), photometric="rgb", planarconfig="separate", compression="lzw"),
            rgb,
        ),
        "tiff signed 16 bits": (
            tiff((grey.astype(np.uint16) * 128).astype(np.int16)),
            rgb_of(np.floor(grey * (128 / 257) + 0.5).astype(np.uint8)),
        ),
        "tiff with strange tags": (tiff(rgb, photometric="rgb", extratags=[(65000, 2, 6, "laser", True)]), rgb),
        "tiff with tags out of order": (_swapped_tags(tiff(rgb, photometric="rgb")), rgb),
        "tiff 32 bits": (tiff(grey.astype(np.uint32) * 257), rgb_of(grey)),
    }  # fmt: skip


def others(rgb: np.ndarray, alpha: np.ndarray) -> dict[str, tuple[bytes, np.ndarray]]:
    grey, rgba = rgb[..., 0], np.dstack([rgb, alpha])
    indexed = Image.fromarray(rgb).quantize(40)
    colours = np.asarray(indexed.convert("RGB"))
    deep = rgb.astype(np.uint16) * 257
    exif = Image.Exif()
    exif[274] = 6
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'
    palette = np.random.default_rng(1).integers(0, 256, (256, 3), np.uint8)
    entries = np.dstack([palette[:, 2], palette[:, 1], palette[:, 0], 0 * palette[:, 0]]).tobytes()
    five, six = (rgb >> 3).astype(np.uint16), (rgb[..., 1] >> 2).astype(np.uint16)
    bmp_555 = bmp(16, _upwards(five[..., 0] << 10 | five[..., 1] << 5 | five[..., 2]))
    bmp_565 = bmp(
        16, _upwards(five[..., 0] << 11 | six << 5 | five[..., 2]), masks=(0xF800, 0x7E0, 0x1F), compression=3
    )
    lossy = {
        "jpeg": pillow(rgb, "JPEG", quality=92),
        "jpeg grey": pillow(grey, "JPEG"),
        "jpeg progressive": pillow(rgb, "JPEG", progressive=True),
        "jpeg of RGB values": pillow(rgb, "JPEG", keep_rgb=True),
        "jpeg of RGB values and Adobe": bytes(imagecodecs.jpeg8_encode(rgb, outcolorspace="rgb")),
        "jpeg turned": pillow(rgb, "JPEG", exif=exif),
        "jpeg turned by a byte": _with_exif(pillow(rgb, "JPEG"), struct.pack(">HHIB3x", 274, 1, 1, 6)),
        "jpeg turned by XMP": pillow(rgb, "JPEG", xmp=xmp),
        "mpo": pillow(rgb, "MPO", save_all=True, append_images=[Image.fromarray(rgb[::-1])]),
        "webp": pillow(rgb, "WEBP", quality=80),
        "avif": pillow(rgb, "AVIF"),
        "jpeg2000 lossy": pillow(rgb, "JPEG2000", irreversible=True, quality_mode="rates", quality_layers=[8]),
        "bmp 555": bmp_555,
        "bmp 565": bmp_565,
    }
    found = {name: (data, read_by_pillow(data)) for name, data in lossy.items()}
    for bits in (1, 2, 4):
        levels = (grey >> (8 - bits)).astype(np.uint8)
        few = lines(packed_bits(levels, bits))
        own = chunk(b"PLTE", palette[: 2**bits].tobytes())
        found[f"png {bits} bits"] = png(few, bits, 0), rgb_of(levels * np.uint8(255 // (2**bits - 1)))
        found[f"png palette of {bits} bits"] = png(few, bits, 3, own), palette[levels]
    return found | {
        "png interlaced": (png(seven_passes(rgb), 8, 2, interlaced=True), rgb),
        "png gamma": (png(lines(rgb), 8, 2, chunk(b"gAMA", struct.pack(">I", 100000))), rgb),
        "png with a profile": (pillow(rgb, "PNG", icc_profile=bytes(200)), rgb),
        "png with many texts": (png(lines(rgb), 8, 2, chunk(b"tEXt", b"a\0b") * 2000), rgb),
        "png with more than its pixels": (png(lines(rgb) + bytes(1000), 8, 2), rgb),
        "png turned": (pillow(rgb, "PNG", exif=exif), np.rot90(rgb, -1)),
        "png": (pillow(rgb, "PNG"), rgb),
        "png rgba": (pillow(rgba, "PNG"), rgb),
        "png palette": (pillow(indexed, "PNG", transparency=3), colours),
        "png 16 bits": (bytes(imagecodecs.png_encode(deep)), rgb),
        "png 16 bits with a profile": (_in_png(bytes(imagecodecs.png_encode(deep)), b"iCCP", b"name\0\0abc"), rgb),
        "png 16 bits grey": (bytes(imagecodecs.png_encode(deep[..., 0].copy())), rgb_of(grey)),
        "png 16 bits rgba": (bytes(imagecodecs.png_encode(np.dstack([deep, deep[..., :1]]))), rgb),
        "bmp": (pillow(rgb, "BMP"), rgb),
        "bmp of 32 bits": (bmp(32, _upwards(np.dstack([rgb[..., ::-1], alpha]))), rgb),
        "bmp of 32 bits, masks": (
            bmp(32, _upwards(np.dstack([rgb[..., ::-1], alpha])), masks=(0xFF0000, 0xFF00, 0xFF), compression=3),
            rgb,
        ),
        "bmp palette": (pillow(indexed, "BMP"), colours),
        "bmp 1 bit": (pillow(Image.fromarray(grey > 128), "BMP"), rgb_of((grey > 128) * np.uint8(255))),
        "bmp run lengths": (bmp(8, _run_lengths(grey), compression=1, palette=entries), palette[grey]),
        "gif": (pillow(indexed, "GIF"), colours),
        "gif transparent": (pillow(indexed, "GIF", transparency=3), colours),
        "webp lossless": (pillow(rgb, "WEBP", lossless=True), rgb),
        "webp rgba": (pillow(rgba, "WEBP", lossless=True, exact=True), rgb),
        "webp turned": (pillow(rgb, "WEBP", lossless=True, exif=exif), np.rot90(rgb, -1)),
        "jp2": (pillow(rgb, "JPEG2000"), rgb),
        "jp2 grey": (pillow(grey, "JPEG2000"), rgb_of(grey)),
        "jp2 rgba": (pillow(rgba, "JPEG2000"), rgb),
        "j2k": (bytes(imagecodecs.jpeg2k_encode(rgb, codecformat="j2k", level=0)), rgb),
        "jp2 16 bits": (bytes(imagecodecs.jpeg2k_encode(deep, level=0)), rgb),
        "jp2 16 bits grey": (bytes(imagecodecs.jpeg2k_encode(deep[..., 0].copy(), level=0)), rgb_of(grey)),
    }


def refused(rgb: np.ndarray, alpha: np.ndarray) -> dict[str, tuple[str, bytes, str]]:
    """Kind of the quarantine, bytes, and words of the reason."""
    image, grey = Image.fromarray(rgb), rgb[..., 0]
    deep = (rgb.astype(np.uint16) * 257) >> 4
    five = np.dstack([rgb, rgb[..., :2]])
    return {
        "jpeg cmyk": ("CMYK", pillow(image.convert("CMYK"), "JPEG"), "convert it to PNG"),
        "tiff cmyk": ("CMYK", pillow(image.convert("CMYK"), "TIFF"), "convert it to PNG"),
        "tiff lab": ("pixel layout", pillow(image.convert("LAB"), "TIFF"), "CIELAB"),
        "tiff ycbcr": ("pixel layout", pillow(image.convert("YCbCr"), "TIFF"), "YCBCR"),
        "tiff of 5 channels": ("pixel layout", tiff(five, photometric="rgb"), "5 channels"),
        "tiff of 2 channels": ("pixel layout", tiff(five[..., :2].copy(), photometric="minisblack",
                               planarconfig="contig"), "2 channels"),
        "tiff white is zero, 16 bits": ("pixel layout", tiff(deep[..., 0].copy(), photometric="miniswhite"),
                                        "16 bits with white as zero"),
        "tiff of complex numbers": ("pixel layout", tiff(grey.astype(np.complex64)), "sample format"),
        "tiff jpeg xl": ("pixel layout", tiff(rgb, photometric="rgb", compression="jpegxl"), "JPEGXL"),
        "tiff of 565": ("pixel layout", _with_tag(tiff(rgb, photometric="rgb"), 258, (5, 6, 5)), "(5, 6, 5) bits"),
        "tiff of unknown planes": ("pixel layout", _with_tag(tiff(rgb, photometric="rgb"), 284, (7,)), "kind 7"),
        "tiff of a wrong png": ("pixel layout", _wrong_png_in_tiff(rgb), "further chunks"),
        "tiff pages": ("several frames", pages(rgb, rgb, reduced=False), "each as its own PNG"),
        "tiff stack of ImageJ": ("several frames", tiff(np.stack([grey] * 5), imagej=True), "each as its own PNG"),
        "tiff volume": ("pixel layout", tiff(np.stack([grey] * 32).reshape(1, 32, 60, 66)[:, :16, :48, :64].copy(),
                        photometric="minisblack", volumetric=True, tile=(16, 16, 16)), "a volume"),
        "png for iPhones": ("pixel layout", _for_iphones(pillow(image, "PNG")), "iPhones"),
        "png without its palette": ("damaged", png(lines(grey), 8, 3), "the palette is missing"),
        "png of a wrong checksum": ("damaged", pillow(image, "PNG")[:-20] + bytes(4) + pillow(image, "PNG")[-16:],
                                    "the checksum of its chunk IDAT is wrong"),
        "apng": ("several frames", pillow(image, "PNG", save_all=True, append_images=[image.rotate(90)]), "animation"),
        "gif animated": ("several frames", pillow(image, "GIF", save_all=True, append_images=[image.rotate(90)]),
                         "each frame as its own PNG"),
        "webp animated": ("several frames", pillow(image, "WEBP", save_all=True, append_images=[image.rotate(90)]),
                          "each frame as its own PNG"),
        "jpeg of 12 bits": ("pixel layout", bytes(imagecodecs.jpeg8_encode(deep, bitspersample=12)), "12 bits"),
        "jpeg lossless": ("pixel layout", bytes(imagecodecs.jpeg8_encode(rgb, lossless=True)), "lossless"),
        "jpeg xl": ("unreadable form", bytes(imagecodecs.jpegxl_encode(rgb)), "JPEG XL picture: convert it to PNG"),
        "jpeg xr": ("unreadable form", bytes(imagecodecs.jpegxr_encode(rgb)), "JPEG XR picture: convert it to PNG"),
        "pdf": ("not an image", b"%PDF-1.7\n" + bytes(200), "PDF"),
        "zip": ("not an image", b"PK\3\4" + bytes(200), "zip archive"),
        "text": ("not an image", b"<html>404 Not Found</html>", "text"),
        "one colour": ("not a cell", pillow(np.full_like(rgb, 200), "JPEG"), "one colour"),
        "one colour tiff": ("not a cell", tiff(np.full_like(rgb, 200), photometric="rgb"), "one colour"),
    }  # fmt: skip
