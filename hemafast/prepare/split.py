"""Which images train and which validate: stratified by class and domain, duplicates together, seeded."""

from __future__ import annotations

import hashlib

import pandas as pd

TRAIN, VAL = "train", "val"
SPLITS = (TRAIN, VAL)


def assign_split(images: pd.DataFrame, *, val_fraction: float, seed: int) -> pd.Series[str]:
    """Name the split of every image.

    `images` has the columns domain, label, group. Every stratum (a class in a domain) sends `val_fraction` of its
    groups to validation, and keeps at least one on each side where it has two. The draw orders groups by a hash of the
    seed and the group's name, so it depends on neither the order of the files nor the platform.
    """
    groups = images.sort_values(["domain", "label"]).drop_duplicates("group")
    draw = groups["group"].map(lambda group: hashlib.sha256(f"{seed}:{group}".encode()).hexdigest())
    chosen: set[str] = set()
    for _, stratum in groups.assign(draw=draw).sort_values("draw").groupby(["domain", "label"]):
        chosen.update(stratum["group"].head(_share(len(stratum), val_fraction)))
    return images["group"].isin(chosen).map({True: VAL, False: TRAIN}).rename("split")


def _share(groups: int, fraction: float) -> int:
    """How many of `groups` validate: the nearest whole number that leaves neither side empty."""
    return min(max(round(groups * fraction), 1), groups - 1)


def find_contradictions(images: pd.DataFrame) -> pd.Series[str]:
    """A reason for every image whose bytes stand elsewhere under another label; the other images are left out.

    `images` has the columns path, label, group; the result keeps its index.
    """
    labels = images.groupby("group")["label"].transform("nunique")
    suspects = images[labels > 1]

    def reason(row: pd.Series[str]) -> str:
        others = suspects[(suspects["group"] == row["group"]) & (suspects["label"] != row["label"])]
        named = ", ".join(path.partition("/")[2] for path in others["path"])
        return f"contradictory labels: the same image is {named}"

    if suspects.empty:
        return pd.Series([], dtype=str, index=suspects.index)
    return suspects.apply(reason, axis=1)
