"""Select which images are quarantined, which train, which validate and which are held out for the test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from hemafast.config import PrepareConfig
from hemafast.errors import HemafastError, LossError, name_some
from hemafast.preparation import schema
from hemafast.preparation.duplicates import chains, find_contradictions, group_duplicates, smallest_in_component
from hemafast.preparation.ready import UNDRAWN, find_twins, keep_ready, ready_notes, told_splits
from hemafast.preparation.split import (
    ALL_SPLITS,
    NO_FOLD,
    SPLITS,
    TEST,
    TRAIN,
    VAL,
    WORDS,
    assign_folds,
    assign_split,
    assign_test,
    missing_strata,
)
from hemafast.words import counted

_NAMED = 3  # images that an error message lists


def select_images(images: pd.DataFrame, config: PrepareConfig) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Find duplicates, quarantine contradictions and split. Returns the manifest, and notes about the split.

    `images` may have the columns ready_split, "train", "val", "test" or empty, and listed_group, a patient or slide or
    empty. Raises HemafastError if more images would be quarantined than the settings allow, or if no image would train
    or none validate.
    """
    manifest = images.assign(split=UNDRAWN, fold=NO_FOLD, duplicate_group="", group="")
    for column in ("ready_split", "listed_group"):
        manifest[column] = images.get(column, "")
    good = schema.accepted(manifest)
    manifest.loc[good.index, "duplicate_group"] = group_duplicates(good)
    _quarantine(manifest, "contradiction", find_contradictions(schema.accepted(manifest)))
    refuse_excess(manifest, config)
    if schema.accepted(manifest).empty:
        why = _described(schema.quarantined(manifest))
        problem = f"None of {counted(len(manifest), 'image')} in {config.source} can be used: {why}."
        raise HemafastError(problem, "Repair or replace them.")
    notes = (*_take_ready(manifest, config), *_draw_rest(manifest, config))
    _refuse_empty(manifest, config)
    return manifest, (*notes, *_shortcomings(schema.accepted(manifest), config))


def _refuse_empty(manifest: pd.DataFrame, config: PrepareConfig) -> None:
    """Raise HemafastError if no image trains, or none validates."""
    empty = [WORDS[split] for split in SPLITS if schema.in_split(manifest, split).empty]
    if not empty:
        return
    ready = told_splits(schema.accepted(manifest)["ready_split"])
    if config.split_file:
        files = ", ".join(map(str, config.split_file))
        raise HemafastError(
            f"{files} leaves no image for {empty[0]}: {ready}.", "Leave out --split-file, or name a split with more."
        )
    if ready and config.holdout_domain is None:
        raise HemafastError(
            f"The split that {config.source} comes with leaves no image for {empty[0]}: {ready}.",
            "Draw another one with --resplit.",
        )
    raise HemafastError(
        f"{config.source} holds too few images: there would be no {empty[0]} images.",
        "At least one class in a domain needs two different images.",
    )


def refuse_excess(manifest: pd.DataFrame, config: PrepareConfig) -> None:
    """Raise HemafastError if more images are quarantined than the settings allow."""
    bad = schema.quarantined(manifest)
    if len(bad) <= (0 if config.strict else config.max_quarantined * len(manifest)):
        return
    problem = f"{len(bad)} of {counted(len(manifest), 'image')} would be quarantined: {_described(bad)}."
    if config.strict:
        raise LossError(problem, "Repair or remove them, or leave out --strict.")
    remedy = f"or accept more than {config.max_quarantined:.0%} with --max-quarantined."
    raise HemafastError(problem, f"Repair or remove them, {remedy}")


def _described(bad: Sequence[schema.QuarantinedImage]) -> str:
    """How many images of each kind are quarantined, and some of them with the reason."""
    by_kind = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(image.kind for image in bad).items()))
    examples = name_some([f"{image.file.partition('/')[2]} ({image.reason})" for image in bad], _NAMED, "; ")
    return f"{by_kind}: {examples}"


def _quarantine(manifest: pd.DataFrame, kind: str, reasons: pd.Series[str]) -> None:
    """Quarantine the rows of `reasons`, in place."""
    rows = reasons.index
    moved = manifest.loc[rows, "path"].str.replace(schema.IMAGES, schema.QUARANTINED_IMAGES, n=1)
    changes = {"path": moved, "verdict": schema.QUARANTINED, "kind": kind, "reason": reasons}
    for column, value in (changes | {"split": "", "fold": NO_FOLD, "group": ""}).items():
        manifest.loc[rows, column] = value


def _take_ready(manifest: pd.DataFrame, config: PrepareConfig) -> tuple[str, ...]:
    """Fill in the splits that are ready, in place. Returns notes.

    Quarantines images that --split-file does not list, and copies of images that are held out.
    """
    if config.split_file:
        _quarantine_unlisted(manifest, config)
    good = schema.accepted(manifest)
    manifest.loc[good.index, "split"] = keep_ready(good, config)
    _quarantine(manifest, "twin validates", find_twins(schema.accepted(manifest)))
    refuse_excess(manifest, config)
    return tuple(ready_notes(schema.accepted(manifest), config))


def _quarantine_unlisted(manifest: pd.DataFrame, config: PrepareConfig) -> None:
    """Quarantine the images that --split-file, which is the ready split then, does not list, in place."""
    good = schema.accepted(manifest)
    files = " and ".join(file.name for file in config.split_file)
    missing = good.index[good["ready_split"] == ""]
    _quarantine(manifest, "not in the split", pd.Series(f"it is not listed in {files}", index=missing))


def _draw_rest(manifest: pd.DataFrame, config: PrepareConfig) -> tuple[str, ...]:
    """Fill in all groups, and split and fold of the images that have no ready split, in place. Returns notes."""
    good = schema.accepted(manifest)
    groups, notes = _groups(good, config)
    manifest.loc[good.index, "group"] = groups
    good = good.assign(group=groups)
    if config.test_fraction:
        held_out = _held_out(good, config)
        good.loc[held_out, "split"] = manifest.loc[held_out, "split"] = TEST
        said = counted(len(held_out), "test image is", "test images are")
        notes = (*notes, f"{said} held out: nothing else sees them")
    undrawn = good[good["split"] == UNDRAWN]
    if undrawn.empty:
        return notes
    if config.folds is not None:
        fold = _folds(undrawn, config.folds, config)
        manifest.loc[undrawn.index, "fold"] = fold
        manifest.loc[undrawn.index, "split"] = (fold == 0).map({True: VAL, False: TRAIN})
    else:
        manifest.loc[undrawn.index, "split"] = _sides(undrawn, good.loc[good["split"] == VAL, "group"], config)
    return notes


def _held_out(good: pd.DataFrame, config: PrepareConfig) -> pd.Index[Any]:
    """The images to hold out as test images: of domains that have none, and never a part of a group."""
    tested = good.loc[good["split"] == TEST, "domain"]
    free = good["split"].isin([UNDRAWN, TRAIN]) | (good["domain"] == config.holdout_domain)
    free &= ~good["domain"].isin(tested)
    images = good[free.groupby(good["group"]).transform("all")]
    drawn = images.index[assign_test(images, test_fraction=config.test_fraction, seed=config.seed)]
    if drawn.empty:
        why = "each domain has test images of its own, or only groups that cannot be divided"
        raise HemafastError(
            f"test_fraction = {config.test_fraction:g} holds out no image: {why}.",
            "Leave it out, or add --resplit to ignore the splits that the images came with.",
        )
    return drawn


def _folds(images: pd.DataFrame, folds: int, config: PrepareConfig) -> pd.Series[int]:
    fold = assign_folds(images, folds=folds, seed=config.seed)
    if fold.nunique() < folds:
        raise HemafastError(
            f"{config.source} holds too few images for {folds} folds: some would be empty.",
            f"Choose at most {fold.nunique()}.",
        )
    return fold


def _sides(images: pd.DataFrame, validating: pd.Series[str], config: PrepareConfig) -> pd.Series[str]:
    """Training or validation for every image. Images of a group that already validates do so too."""
    joined = images["group"].isin(validating)
    split, others = pd.Series(VAL, index=images.index), images[~joined]
    if config.val_fraction == 0:
        split[others.index] = TRAIN
    else:
        split[others.index] = assign_split(others, val_fraction=config.val_fraction, seed=config.seed)
    return split


def _shortcomings(good: pd.DataFrame, config: PrepareConfig) -> list[str]:
    """Notes about classes that a split or fold lacks, and about patients in several splits."""
    tested = good["domain"].isin(good.loc[good["split"] == TEST, "domain"])
    if config.folds is not None:
        notes = missing_strata(good[good["split"] != TEST], "fold", range(config.folds))
    else:
        notes = missing_strata(good[~tested], "split", SPLITS) + missing_strata(good[tested], "split", ALL_SPLITS)
    if divided := schema.divided_groups(good):
        notes.append(
            f"{counted(divided, 'patient or slide is', 'patients or slides are')} in several splits, "
            "as these came: scores may be too good"
        )
    return notes


def _groups(good: pd.DataFrame, config: PrepareConfig) -> tuple[pd.Series[str], tuple[str, ...]]:
    """The group of every image, which stays on one side of the split: one picture, patient or slide, and notes."""
    pictures = good["duplicate_group"]
    listed = _listed_groups(good, config)
    if listed is None:
        return pictures, ()
    named = listed.dropna()
    links = np.concatenate([chains(pictures), chains(named)])
    rest = len(good) - len(named)
    source = config.groups.name if config.groups else config.group_pattern or "the table of labels or the folders"
    notes = [f"{counted(rest, 'image has', 'images have')} no group in {source}"] if rest else []
    return smallest_in_component(pictures, links), (*notes, *_shared_pictures(good, named))


def _shared_pictures(good: pd.DataFrame, named: pd.Series[str]) -> list[str]:
    """A note if patients or slides have a picture in common: they then count as one."""
    pictures = good.loc[named.index, "duplicate_group"]
    shared = named.groupby(pictures).nunique()
    examples = [name_some(sorted(set(named[pictures == one])), _NAMED) for one in shared[shared > 1].index[:1]]
    return [
        f"{(shared > 1).sum()} pictures are of several patients or slides, which stay together: {example}"
        for example in examples
    ]


def _listed_groups(good: pd.DataFrame, config: PrepareConfig) -> pd.Series[str] | None:
    """The patient or slide of each image, missing if it has none; None if there are no groups.

    The settings go before a table of labels.
    """
    if config.group_pattern is not None:
        named = schema.names_of(good).str.rpartition("/")[2].str.extract(config.group_pattern).iloc[:, 0]
        if named.isna().all():
            raise HemafastError(
                f"group_pattern = {config.group_pattern!r} matches no file name.",
                f"File names look like {schema.names_of(good).iloc[0]}.",
            )
        return good["domain"] + "/" + named
    listed = good["listed_group"]
    return listed.where(listed != "") if (listed != "").any() else None
