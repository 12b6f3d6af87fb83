"""Name what a file is by its first bytes: content decides, not the suffix."""

from __future__ import annotations

import re

HEAD_BYTES = 264
"""Bytes to give to the functions here: the mark of a tar ends at 262. Fewer are allowed; fewer forms are then known."""

READABLE = frozenset({"JPEG", "PNG", "TIFF", "BMP", "WEBP", "JPEG2000", "GIF", "AVIF"})
"""Formats of images that hemafast reads, by Pillow's names."""

UNREADABLE = {
    "HEIC": ("HEIC picture", "with the phone's own export, or `magick in.heic out.png`"),
    "JPEG XL": ("JPEG XL picture", "with `djxl in.jxl out.png`"),
    "JPEG XR": ("JPEG XR picture", "with `JxrDecApp -i in.jxr -o out.png`"),
    "DICOM": ("DICOM picture", "with `dcmj2pnm +on2 in.dcm out.png` of DCMTK"),
    "PSD": ("Photoshop document", "with Photoshop or `magick 'in.psd[0]' out.png`"),
    "CZI": ("Zeiss CZI picture", "with ZEN or Fiji"),
    "LIF": ("Leica LIF picture", "with Fiji"),
    "ND2": ("Nikon ND2 picture", "with NIS-Elements or Fiji"),
    "FITS": ("FITS picture", "with Fiji"),
    "EXR": ("OpenEXR picture", "with `magick in.exr out.png`"),
    "HDR": ("Radiance picture", "with `magick in.hdr out.png`"),
    "PNM": ("PNM picture", "with `magick in.ppm out.png`"),
}
"""Images that hemafast recognises and cannot read: their name in words, and how to convert them to PNG."""

_IMAGES = (
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("TIFF", re.compile(rb"II[*+]\0|MM\0[*+]")),
    ("BMP", re.compile(rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL)),  # length of the second header
    ("WEBP", re.compile(rb"RIFF.{4}WEBP", re.DOTALL)),
    ("JPEG2000", re.compile(rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51")),
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("AVIF", re.compile(rb".{4}ftyp(avi[fs]|mi[af]1.{4}(.{4})*?avif)", re.DOTALL)),
    ("HEIC", re.compile(rb".{4}ftyp(he[iv][cmsx]|m[is]f1)", re.DOTALL)),
    ("JPEG XL", re.compile(rb"\0\0\0\x0cJXL \r\n\x87\n|\xff\x0a")),
    ("JPEG XR", re.compile(rb"II\xbc")),
    ("DICOM", re.compile(rb".{128}DICM", re.DOTALL)),
    ("PSD", re.compile(rb"8BP[SB]\0")),
    ("CZI", re.compile(rb"ZISRAWFILE")),
    ("LIF", re.compile(rb"\x70\0\0\0.{4}\x2a", re.DOTALL)),
    ("ND2", re.compile(rb"\xda\xce\xbe\x0a")),
    ("FITS", re.compile(rb"SIMPLE  =")),
    ("EXR", re.compile(rb"\x76\x2f\x31\x01")),
    ("HDR", re.compile(rb"#\?(RADIANCE|RGBE)\n")),
    ("PNM", re.compile(rb"P[1-6]\s\s*(#.*\s)*\d+\s+\d+\s")),
)

_OTHERS = (
    ("PDF", re.compile(rb"%PDF-")),
    ("zip archive", re.compile(rb"PK(\x03\x04|\x05\x06|\x07\x08)")),
    ("gzip archive", re.compile(rb"\x1f\x8b")),
    ("bzip2 archive", re.compile(rb"BZh[1-9]")),
    ("xz archive", re.compile(rb"\xfd7zXZ\0")),
    ("zstd archive", re.compile(rb"\x28\xb5\x2f\xfd")),
    ("7z archive", re.compile(rb"7z\xbc\xaf\x27\x1c")),
    ("rar archive", re.compile(rb"Rar!\x1a\x07")),
    ("tar archive", re.compile(rb".{257}ustar", re.DOTALL)),
    ("video", re.compile(rb".{4}ftyp|RIFF.{4}AVI |\x1a\x45\xdf\xa3|\0\0\x01[\xb3\xba]|.{4}(moov|mdat)", re.DOTALL)),
    ("sound", re.compile(rb"RIFF.{4}WAVE|ID3|OggS|fLaC", re.DOTALL)),
    ("SVG drawing", re.compile(rb"\s*(<\?xml[^>]*>)?\s*(<!.*>)?\s*<svg", re.DOTALL)),
    ("icon", re.compile(rb"\0\0[\x01\x02]\0[^\0]\0")),
    ("HDF5 file", re.compile(rb"\x89HDF\r\n\x1a\n")),
    ("NumPy array", re.compile(rb"\x93NUMPY")),
    ("MATLAB file", re.compile(rb"MATLAB 5\.0")),
    ("Parquet table", re.compile(rb"PAR1")),
    ("SQLite database", re.compile(rb"SQLite format 3\0")),
    ("Office document", re.compile(rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")),
    ("pickle", re.compile(rb"\x80[\x02-\x05][\]\}c(\x95]")),
)

_BY_SUFFIX = {
    ("zip archive", ".xlsx"): "Excel table",
    ("zip archive", ".docx"): "Word document",
    ("zip archive", ".pptx"): "PowerPoint document",
    ("zip archive", ".npz"): "NumPy arrays",
    ("zip archive", ".pt"): "torch file",
    ("zip archive", ".pth"): "torch file",
    ("Office document", ".xls"): "Excel table",
    ("Office document", ".doc"): "Word document",
    ("text", ".csv"): "table (csv)",
    ("text", ".tsv"): "table (tsv)",
    ("text", ".json"): "JSON file",
    ("text", ".xml"): "XML file",
    ("text", ".py"): "Python program",
}
_UNTYPICAL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")  # control characters that no text holds
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def image_format(head: bytes) -> str:
    """The format of an image by the first HEAD_BYTES of its file.

    One of READABLE (MPO counts as JPEG), a key of UNREADABLE, or "" for what is no image.
    """
    return next((name for name, mark in _IMAGES if mark.match(head)), "")


def kind_of(head: bytes, name: str) -> str:
    """What a file is, in words, by its first HEAD_BYTES; its name only makes the words more exact."""
    if not head:
        return "empty file"
    image = image_format(head)
    if image:
        return UNREADABLE[image][0] if image in UNREADABLE else f"{image} picture"
    found = next((words for words, mark in _OTHERS if mark.match(head)), "")
    found = found or ("text" if _is_text(head) else "unknown file")
    return _BY_SUFFIX.get((found, _suffix_of(name)), found)


def _suffix_of(name: str) -> str:
    dot = name.rfind(".", name.rfind("/") + 1)
    return name[dot:].lower() if dot >= 0 else ""


def _is_text(head: bytes) -> bool:
    if head.startswith(_UTF16):
        return True
    if _UNTYPICAL.search(head):
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        # A letter that the cut divided is no fault. Text of an older encoding is mostly ASCII.
        return error.start > len(head) - 4 or sum(byte > 0x7F for byte in head) < len(head) // 4
    return True
