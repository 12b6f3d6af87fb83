"""What becomes of an image that is not plain: the kinds that are converted, and those that are quarantined."""

from __future__ import annotations

CONVERTED_KINDS = {
    "grey": "one channel: repeated to RGB",
    "alpha": "transparency: dropped, colours stay as stored",
    "palette": "palette: each index becomes its colour",
    "scaled": "more than 8 bits a channel, or float: scaled from the range of its domain to 0 to 255",
    "rotated": "an orientation in EXIF or TIFF: applied",
    "first picture": "previews or a second view behind the first picture: the first is taken",
    "re-encoded": "a form of file that training cannot read as it is: stored as a PNG of the same pixels",
    "misnamed": "the suffix names another format: read by its content",
}
"""Kinds of image that are converted to plain 8-bit RGB, and how."""

QUARANTINED_KINDS = {
    "empty": "no bytes",
    "not an image": "its content is no image in a known format",
    "unreadable form": "an image in a form that hemafast does not read: HEIC, DICOM, PSD ...",
    "damaged": "truncated or corrupt: a decoder failed or warned",
    "seam": "a JPEG whose colours shift at a block boundary: its bytes were changed, and no decoder warns",
    "checksum": "its sha256 differs from the one in --checksums",
    "several frames": "an animation, or several pages",
    "too large": "a side of 2,000 px or more: a slide or a field of view, not a cell",
    "not a cell": "smaller than --min-side, more than 4 times as long as wide, or of one colour",
    "CMYK": "ink values: their colours depend on a profile",
    "pixel layout": "not grey, RGB or palette: Lab, raw sensor data, several channels ...",
    "range": "values beyond the bit depth of its domain, below zero, or not finite",
    "decoders disagree": "DALI fails, or reads other pixels than the reference decoder",
    "field of view": "smaller than the square that --field-of-view asks for",
    "contradiction": "the same picture is also in another class",
    "not in the split": "--split-file does not list it",
    "twin validates": "the same picture is held out: in the test split or, for a training image, in validation",
}
"""Kinds of image that are quarantined, and why."""

CONVERT = "convert it to PNG, for example"
"""Remedy for a form that is not read; how to do it follows."""


class UnreadableImageError(ValueError):
    """An image that must be quarantined: `kind` is a key of QUARANTINED_KINDS, the message says why."""

    def __init__(self, kind: str, message: str = "") -> None:
        super().__init__(message or QUARANTINED_KINDS[kind])
        self.kind = kind


def ink_values() -> UnreadableImageError:
    """For an image of CMYK values."""
    how = "`magick in -colorspace sRGB out.png`"
    return UnreadableImageError("CMYK", f"ink values, whose colours depend on a profile: {CONVERT} with {how}")
