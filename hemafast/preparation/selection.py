"""Select which images are quarantined, which train and which validate."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd

from hemafast.config import PrepareConfig
from hemafast.errors import HemafastError, name_some
from hemafast.preparation import lists, schema
from hemafast.preparation.duplicates import chains, find_contradictions, group_duplicates, smallest_in_component
from hemafast.preparation.split import NO_FOLD, SPLITS, TRAIN, VAL, assign_folds, assign_split, missing_strata

_NAMED = 3  # images that an error message lists


def select_images(images: pd.DataFrame, config: PrepareConfig) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Find duplicates, quarantine contradictions and split. Returns the manifest, and notes about the split.

    Raises HemafastError if more images would be quarantined than the settings allow, or a split would be empty.
    """
    manifest = images.assign(split="", fold=NO_FOLD, duplicate_group="", group="")
    good = schema.accepted(manifest)
    manifest.loc[good.index, "duplicate_group"] = group_duplicates(good)
    _quarantine(manifest, "contradiction", find_contradictions(schema.accepted(manifest)))
    refuse_excess(manifest, config)
    if schema.accepted(manifest).empty:
        raise HemafastError(f"None of the {len(manifest)} images in {config.source} can be used.", "Look at a few.")
    notes = _take_split(manifest, config) if config.split_file else _draw_split(manifest, config)
    for side in SPLITS:
        if schema.in_split(manifest, side).empty:
            raise HemafastError(
                f"{config.source} holds too few images: the {side} split would be empty.",
                "At least one class in a domain needs two different images.",
            )
    return manifest, notes


def refuse_excess(manifest: pd.DataFrame, config: PrepareConfig) -> None:
    """Raise HemafastError if more images are quarantined than the settings allow."""
    bad = schema.quarantined(manifest)
    if len(bad) <= (0 if config.strict else config.max_quarantined * len(manifest)):
        return
    by_kind = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(image.kind for image in bad).items()))
    examples = name_some([f"{image.file.partition('/')[2]} ({image.reason})" for image in bad], _NAMED, "; ")
    remedy = f"or accept more than {config.max_quarantined:.0%} with --max-quarantined."
    if config.strict:
        remedy = "or leave out --strict."
    raise HemafastError(
        f"{len(bad)} of {len(manifest)} images would be quarantined: {by_kind}: {examples}.",
        f"Repair or remove them, {remedy}",
    )


def _quarantine(manifest: pd.DataFrame, kind: str, reasons: pd.Series[str]) -> None:
    """Quarantine the rows of `reasons`, in place."""
    rows = reasons.index
    moved = manifest.loc[rows, "path"].str.replace(schema.IMAGES, schema.QUARANTINED_IMAGES, n=1)
    changes = {"path": moved, "verdict": schema.QUARANTINED, "kind": kind, "reason": reasons}
    for column, value in (changes | {"split": "", "fold": NO_FOLD, "group": ""}).items():
        manifest.loc[rows, column] = value


def _draw_split(manifest: pd.DataFrame, config: PrepareConfig) -> tuple[str, ...]:
    """Fill in group, split and fold, in place. Returns notes."""
    good = schema.accepted(manifest)
    groups, notes = _groups(good, config)
    good = good.assign(group=groups)
    if config.folds is not None:
        good["fold"] = assign_folds(good, folds=config.folds, seed=config.seed)
        if good["fold"].nunique() < config.folds:
            raise HemafastError(
                f"{config.source} holds too few images for {config.folds} folds: some would be empty.",
                f"Choose at most {good['fold'].nunique()}.",
            )
        good["split"] = (good["fold"] == 0).map({True: VAL, False: TRAIN})
        missing = missing_strata(good, "fold", range(config.folds))
    else:
        good["split"] = _sides(good, config)
        missing = missing_strata(good, "split", SPLITS)
    manifest.loc[good.index, ["group", "split", "fold"]] = good[["group", "split", "fold"]]
    return (*notes, *missing)


def _sides(good: pd.DataFrame, config: PrepareConfig) -> pd.Series[str]:
    """The split of every image. Images that share a group with a held-out domain validate too."""
    if config.holdout_domain is not None and config.holdout_domain not in set(good["domain"]):
        raise HemafastError(
            f"No image of {config.holdout_domain} can be used for validation.", "Hold out another domain."
        )
    held_out = good["group"].isin(good.loc[good["domain"] == config.holdout_domain, "group"])
    split, others = pd.Series(VAL, index=good.index), good[~held_out]
    if config.val_fraction == 0:
        split[others.index] = TRAIN
    else:
        split[others.index] = assign_split(others, val_fraction=config.val_fraction, seed=config.seed)
    return split


def _groups(good: pd.DataFrame, config: PrepareConfig) -> tuple[pd.Series[str], tuple[str, ...]]:
    """The group of every image, which stays on one side of the split: one picture, patient or slide, and notes."""
    pictures = good["duplicate_group"]
    listed = _listed_groups(good, config)
    if listed is None:
        return pictures, ()
    named = listed.dropna()
    links = np.concatenate([chains(pictures), chains(named)])
    rest = len(good) - len(named)
    source = config.groups.name if config.groups else config.group_pattern
    notes = (f"{rest} images have no group in {source}",) if rest else ()
    return smallest_in_component(pictures, links), notes


def _listed_groups(good: pd.DataFrame, config: PrepareConfig) -> pd.Series[str] | None:
    """The patient or slide of each image, missing if it has none; None if the settings name no groups."""
    names = schema.names_of(good)
    if config.groups is not None:
        return names.map(lists.read_values(config.groups, "group", names))
    if config.group_pattern is not None:
        named = names.str.rpartition("/")[2].str.extract(config.group_pattern).iloc[:, 0]
        if named.isna().all():
            raise HemafastError(
                f"group_pattern = {config.group_pattern!r} matches no file name.",
                f"File names look like {names.iloc[0]}.",
            )
        return good["domain"] + "/" + named
    return None


def _take_split(manifest: pd.DataFrame, config: PrepareConfig) -> tuple[str, ...]:
    """Split as --split-file says, in place. Returns notes.

    Quarantines images that the file does not list, and training images whose picture also validates.
    """
    file, good = config.split_file[0], schema.accepted(manifest)
    names = schema.names_of(good)
    split = names.map(lists.read_split(config.split_file, names)).fillna("")
    manifest.loc[good.index, "split"] = split
    manifest.loc[good.index, "group"] = good["duplicate_group"]
    validating = set(good.loc[split == VAL, "duplicate_group"])
    twins = good.index[(split == TRAIN) & good["duplicate_group"].isin(validating)]
    missing = good.index[split == ""]
    _quarantine(manifest, "twin validates", pd.Series(f"{file.name} validates on the same picture", index=twins))
    _quarantine(manifest, "not in the split", pd.Series(f"{file.name} does not list it", index=missing))
    refuse_excess(manifest, config)
    return tuple(missing_strata(schema.accepted(manifest), "split", SPLITS))
