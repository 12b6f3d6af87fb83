"""The preparation from start to end: list the archives, read every image once, split, write, publish."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from hemafast.config import PrepareConfig, to_plain
from hemafast.errors import HemafastError
from hemafast.prepare import schema
from hemafast.prepare.archive import Archive, find_archives, open_archive
from hemafast.prepare.ingest import Progress, ingest
from hemafast.prepare.pixels import SquareFile
from hemafast.prepare.publish import published_whole
from hemafast.prepare.reader import read_prepared
from hemafast.prepare.shards import digest, fingerprint, shard_order, write_manifest, write_packed, write_shards
from hemafast.prepare.split import SPLITS, assign_split, find_contradictions
from hemafast.taxonomy import CHALLENGE_CLASSES, UM_PER_PIXEL


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prepared data set, where it lies, and whether it was already there."""

    folder: Path
    info: schema.DatasetInfo
    fresh: bool


def prepare(config: PrepareConfig, progress: Progress = lambda done, total: None) -> Prepared:
    """Turn the archives in `config.source` into a prepared data set at `config.output`.

    If it is already there, made from the same archives with the same settings, nothing changes. Raises HemafastError
    for input that cannot be used; then nothing is written.
    """
    _refuse_source_within(config)
    archives = [open_archive(path) for path in find_archives(config.source, config.output)]
    classes = _choose_classes(archives, config)
    inputs = _inputs_digest(archives, config)
    existing = _existing(config.output)
    if existing is not None and existing.inputs == inputs:
        return Prepared(config.output, existing, fresh=False)
    with published_whole(config.output, schema.INFO) as folder, SquareFile(folder, config.packed_size) as squares:
        images = ingest(archives, folder, squares, config, progress)
        images = _quarantine_contradictions(images, folder)
        images["split"] = _assign_split(images, config)
        order = shard_order(images, config.seed)
        manifest = images.iloc[order].reset_index(drop=True)
        write_manifest(folder, manifest)
        write_shards(folder, manifest, classes, config.shards)
        write_packed(folder, manifest, squares, order, config.packed_size)
        info = _describe(archives, classes, manifest, inputs, config)
        (folder / schema.INFO).write_text(info.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return Prepared(config.output, info, fresh=True)


def _refuse_source_within(config: PrepareConfig) -> None:
    """The output is replaced as a whole; archives inside it would go with it."""
    if config.source.resolve().is_relative_to(config.output.resolve()):
        raise HemafastError(
            f"The archives in {config.source} lie within the output {config.output}, which is replaced as a whole.",
            "Choose another --output.",
        )


def _assign_split(images: pd.DataFrame, config: PrepareConfig) -> pd.Series[str]:
    """The split of every image, "" for quarantined ones. Raises HemafastError if either side would be empty."""
    accepted = images[images["verdict"] == schema.ACCEPTED]
    if accepted.empty:
        raise HemafastError(f"No image in {config.source} can be read.", "Check the archives.")
    split = assign_split(accepted, val_fraction=config.val_fraction, seed=config.seed)
    for side in SPLITS:
        if side not in set(split):
            raise HemafastError(
                f"{config.source} holds too few images: none would be left for {side}.",
                "A class in a domain needs two different images to stand on both sides.",
            )
    return split.reindex(images.index, fill_value="")


def _existing(folder: Path) -> schema.DatasetInfo | None:
    """What the data set at `folder` says of itself, or None if there is none that is whole."""
    try:
        return read_prepared(folder).info
    except HemafastError:
        return None


def _choose_classes(archives: list[Archive], config: PrepareConfig) -> tuple[str, ...]:
    if config.classes == "from-data":
        return tuple(sorted(set.union(*(archive.classes for archive in archives))))
    for archive in archives:
        unknown = sorted(archive.classes - set(CHALLENGE_CLASSES))
        if unknown:
            raise HemafastError(
                f"{archive.path}: {unknown[0]!r} is none of the {len(CHALLENGE_CLASSES)} challenge classes.",
                "Rename it, or take the class folders as they are with --classes from-data.",
            )
    return CHALLENGE_CLASSES


def _inputs_digest(archives: list[Archive], config: PrepareConfig) -> str:
    listing = [
        [archive.domain, archive.drawn, [[m.entry.name, m.entry.size, m.entry.stamp] for m in archive.members]]
        for archive in archives
    ]
    settings = {name: value for name, value in to_plain(config).items() if name not in ("source", "output")}
    return digest([schema.SCHEMA, listing, settings])


def _quarantine_contradictions(images: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Take out the images whose bytes stand in two class folders: nobody can say which label is right."""
    reasons = find_contradictions(images[images["verdict"] == schema.ACCEPTED])
    paths = images.loc[reasons.index, "path"]
    moved = paths.str.replace(schema.IMAGES, schema.QUARANTINED, n=1)
    for path, target in zip(paths, moved, strict=True):
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).rename(folder / target)
    changes = pd.DataFrame({"path": moved, "verdict": schema.REFUSED, "reason": reasons})
    changed = images.copy()
    changed.update(changes)
    return changed


def _describe(
    archives: list[Archive], classes: tuple[str, ...], manifest: pd.DataFrame, inputs: str, config: PrepareConfig
) -> schema.DatasetInfo:
    refused = manifest[manifest["verdict"] == schema.REFUSED]["domain"].value_counts()
    return schema.DatasetInfo(
        schema_version=schema.SCHEMA,
        fingerprint=fingerprint(manifest, classes, config.packed_size),
        inputs=inputs,
        classes=classes,
        domains={
            archive.domain: schema.DomainInfo(
                archive=archive.path.name,
                um_per_pixel=UM_PER_PIXEL.get(archive.domain),
                drawn=archive.drawn,
                images=len(archive.members),
                quarantined=int(refused.get(archive.domain, 0)),
                ignored=len(archive.ignored),
            )
            for archive in archives
        },
        counts={split: _count(schema.in_split(manifest, split)) for split in SPLITS},
        settings=config,
        versions={name: version(name) for name in ("hemafast", "nvidia-dali-cuda120", "pillow", "simplejpeg")},
    )


def _count(images: pd.DataFrame) -> dict[str, dict[str, int]]:
    return {
        str(domain): {str(label): int(n) for label, n in part["label"].value_counts().sort_index().items()}
        for domain, part in images.groupby("domain")
    }
