"""Walk through a PNG before libpng does: it prints what it does not like, and Pillow does not verify checksums."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

from hemafast.preparation.images.kinds import CONVERT, UnreadableImageError

_SIGNATURE = 8  # bytes
_PLAIN = re.compile(rb"IHDR(pHYs)?(tEXt){,32}(tIME)?(IDAT)+(tEXt){,32}IEND")
"""Chunks in an order that libpng reads in silence."""
_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # by colour type
_PALETTE = 3

Chunks = list[tuple[bytes, bytes]]
"""Kind, and all bytes of the chunk."""


def read_chunks(data: bytes) -> Chunks:
    """The chunks of a PNG up to its end. Raises UnreadableImageError if it is cut or damaged."""
    chunks = list(_walk(data))
    kinds = [kind for kind, _ in chunks]
    if kinds[:1] == [b"CgBI"]:
        raise UnreadableImageError("pixel layout", f"PNG for iPhones: {CONVERT} with Preview on a Mac")
    if kinds[:1] != [b"IHDR"] or len(chunks[0][1]) != 25:
        raise UnreadableImageError("damaged", "the header of a PNG image is cut or damaged")
    if chunks[0][1][17] == _PALETTE and b"PLTE" not in kinds:
        raise UnreadableImageError("damaged", "the palette is missing")
    return chunks


def is_plain(chunks: Chunks) -> bool:
    """Whether libpng reads the PNG in silence: common chunks, no palette, not interlaced, exactly its pixels."""
    header = chunks[0][1][8:]
    width, height, bits, colour, interlaced = (
        int.from_bytes(header[begin:end], "big") for begin, end in ((0, 4), (4, 8), (8, 9), (9, 10), (12, 13))
    )
    if interlaced or colour not in _CHANNELS or not _PLAIN.fullmatch(b"".join(kind for kind, _ in chunks)):
        return False
    expected = height * (1 + (width * bits * _CHANNELS[colour] + 7) // 8)
    inflate = zlib.decompressobj()
    pixels = inflate.decompress(b"".join(chunk[8:-4] for kind, chunk in chunks if kind == b"IDAT"), expected + 1)
    return len(pixels) == expected and inflate.eof and not inflate.unused_data


def pixels_alone(data: bytes, chunks: Chunks) -> bytes:
    """The PNG without profile, texts and transparency, about which libpng may print."""
    kept = (chunk for kind, chunk in chunks if kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND"))
    return data[:_SIGNATURE] + b"".join(kept)


def _walk(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at, kind = _SIGNATURE, b""
    while kind != b"IEND":
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        chunk = data[at : at + length + 12]
        if len(chunk) < length + 12:
            raise UnreadableImageError("damaged", "the end of the file is missing")
        if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
            raise UnreadableImageError("damaged", f"the checksum of its chunk {kind.decode('latin-1')} is wrong")
        yield kind, chunk
        at += length + 12
