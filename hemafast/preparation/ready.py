"""Ready splits: those that images come with, by folders or a table of labels, or that --split-file gives.

A ready split is kept as it is. If it has no validation images, they are drawn from its training images.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from hemafast.config import PrepareConfig
from hemafast.errors import HemafastError
from hemafast.preparation import schema
from hemafast.preparation.split import ALL_SPLITS, TEST, TRAIN, VAL, WORDS
from hemafast.words import counted

UNDRAWN = ""
"""In place of a split: it is still to be drawn."""

_YIELDS_TO = {VAL: (TRAIN,), TEST: (TRAIN, VAL, UNDRAWN)}
"""By split: where a copy of one of its images is left out. A copy that is still to be drawn can validate too."""


def keep_ready(images: pd.DataFrame, config: PrepareConfig) -> pd.Series[str]:
    """The split of each image as far as it is ready, UNDRAWN for all others.

    Each domain is looked at by itself, but the images of --split-file all together. `images` has the columns domain and
    ready_split. Raises HemafastError if the domain of --holdout-domain has no image to validate on.
    """
    ready, owner = images["ready_split"], _owner(images, config)
    if config.folds is not None:
        return ready.where(ready == TEST, UNDRAWN)
    held_out = (images["domain"] == config.holdout_domain) & (ready != TEST)
    if config.holdout_domain is not None and not held_out.any():
        raise HemafastError(
            f"No image of {config.holdout_domain} can be used for validation.", "Hold out another domain."
        )
    split = ready.mask(held_out, VAL)
    validated = owner.isin(owner[split == VAL])
    return split.mask(split.isin([TRAIN, UNDRAWN]), validated.map({True: TRAIN, False: UNDRAWN}))


def find_twins(images: pd.DataFrame) -> pd.Series[str]:
    """A reason for each image that must be left out because a copy is held out; other images are not in the result.

    `images` has the columns path, split and duplicate_group; the result keeps its index.
    """
    reasons = pd.Series("", index=images.index)
    for split, lower in _YIELDS_TO.items():
        held_out = images[images["split"] == split]
        copies = schema.names_of(held_out).groupby(held_out["duplicate_group"]).min()
        twins = images.loc[images["split"].isin(lower), "duplicate_group"].map(copies).dropna()
        reasons[twins.index] = f"the same picture is the {WORDS[split]} image " + twins.astype(str)
    return reasons[reasons != ""]


def ready_notes(images: pd.DataFrame, config: PrepareConfig) -> Iterator[str]:
    """What became of each ready split; `images` as for `keep_ready`."""
    for name, split in images["ready_split"].groupby(_owner(images, config)):
        if found := told_splits(split):
            yield from (f"{name}: {note}" for note in _told(str(name), split, found, config))


def told_splits(split: pd.Series[str]) -> str:
    """The images of each split, as in "60 training, 20 test images"; empty if there is none."""
    counts = [f"{count} {WORDS[name]}" for name in ALL_SPLITS if (count := int((split == name).sum()))]
    return f"{', '.join(counts)} images" if counts else ""


def _owner(images: pd.DataFrame, config: PrepareConfig) -> pd.Series[str]:
    """Whose split each image is in: its domain's, or that of --split-file."""
    files = ", ".join(file.name for file in config.split_file)
    return pd.Series(files, index=images.index) if files else images["domain"]


def _told(name: str, split: pd.Series[str], found: str, config: PrepareConfig) -> Iterator[str]:
    """What becomes of one ready split."""
    if config.folds is not None:
        yield f"of its split ({found}), only test is kept; the folds are drawn over all other images"
    elif name == config.holdout_domain:
        yield f"of its split ({found}), only test is kept; all other images validate"
    else:
        yield f"its split is kept: {found}"
        if VAL not in set(split) and TRAIN in set(split):
            yield f"its split has no validation images, so {config.val_fraction:.0%} of its training images validate"
        if strays := int((split == UNDRAWN).sum()):
            yield counted(
                strays,
                "image is in no split and counts as a training image",
                "images are in no split and count as training images",
            )
