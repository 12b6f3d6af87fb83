"""Find damage in a JPEG that no decoder notices.

Lost or changed bytes in the coded data of a JPEG shift the mean of every block that follows. Where a decoder finds its
way again, half of the picture may have other colours, without a warning. Such damage leaves a seam: all pixels of a row
at a block boundary jump by the same amount from those above, and the picture goes on below. The row at which a picture
ends and a plain border or another picture begins is none.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hemafast.preparation.images.kinds import UnreadableImageError

_BLOCK = 8  # px
_LEAST = 128  # px: side of an image with enough columns to tell
_EVERY = 4  # px: columns that are looked at
_SHIFT = 12  # of 255; three of 3,218 real images have more, in rows where the picture does not go on
_APART = 3  # px from the boundary: rows that colours of the other side do not reach
_ALIKE = 0.5  # correlation of the rows above and below
_SURE = 12  # times the error of the median, or a little more than half of that
_UNUSUAL = 5  # times the largest shift where no block begins


def refuse_seam(pixels: npt.NDArray[np.uint8]) -> None:
    """Raise UnreadableImageError if pixels (height, width, 3) of a JPEG have a seam in their left or right half."""
    if min(pixels.shape[:2]) < _LEAST:
        return
    middle = pixels.shape[1] // 2
    for half in (pixels[:, :middle:_EVERY], pixels[:, middle::_EVERY]):
        changes = _changes(half, _BLOCK)
        shifts = _median(changes)
        for boundary, channel in zip(*np.nonzero(np.abs(shifts) > _SHIFT), strict=True):
            row, shift = _BLOCK * (int(boundary) + 1), int(shifts[boundary, channel])
            goes_on = _goes_on(half[row - _APART, :, channel], half[row + _APART - 1, :, channel])
            if goes_on and _is_unusual(shift, changes[boundary, channel], half):
                raise UnreadableImageError("seam", f"colours shift by {abs(shift)} of 255 from row {row} on")


def _changes(half: npt.NDArray[np.uint8], first: int) -> npt.NDArray[np.int16]:
    """(rows, 3, columns): what changes at every eighth row beyond what changes one row before and after."""
    count = max(0, (len(half) - first + _BLOCK - _APART) // _BLOCK)
    before, above, below, after = (half[first + offset :: _BLOCK][:count].astype(np.int16) for offset in (-2, -1, 0, 1))
    return ((3 * (below - above) + before - after) // 2).transpose(0, 2, 1)


def _median(values: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
    """Of the last axis, four times as fast as numpy's."""
    middle = values.shape[-1] // 2
    medians: npt.NDArray[np.int16] = np.partition(values, middle)[..., middle]
    return medians


def _is_unusual(shift: int, changes: npt.NDArray[np.int16], half: npt.NDArray[np.uint8]) -> bool:
    """Whether neither noise explains the median of the changes, nor what is usual where no block begins."""
    error = np.median(np.abs(changes - shift)) / np.sqrt(len(changes))
    usual = np.abs(_median(_changes(half, _BLOCK // 2))).max()
    return bool(abs(shift) > max(_SURE * error, _UNUSUAL * usual))


def _goes_on(above: npt.NDArray[np.uint8], below: npt.NDArray[np.uint8]) -> bool:
    """Whether two rows show the same picture. A plain border shows none."""
    if min(above.std(), below.std()) < 1:
        return False
    return bool(np.corrcoef(above, below)[0, 1] > _ALIKE)
