"""Prepare a data set: list the archives, read every image once, select, write, publish."""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from hemafast.config import PrepareConfig
from hemafast.errors import HemafastError
from hemafast.preparation import schema
from hemafast.preparation.account import account_for, refuse_lost
from hemafast.preparation.appearance import find_implausible
from hemafast.preparation.domain_scales import measure_scales, scale_notes
from hemafast.preparation.images.depth import Range
from hemafast.preparation.ingest import ingest
from hemafast.preparation.parts import Part, find_parts, is_read, join_parts, mark_read, remove_parts
from hemafast.preparation.pixels import rows_per_file
from hemafast.preparation.plan import Plan, choose_sums, make_plan
from hemafast.preparation.publish import (
    kept_beside,
    log_of,
    published_whole,
    recover,
    refuse_foreign,
    refuse_too_little_room,
)
from hemafast.preparation.ranges import measure_ranges, range_notes
from hemafast.preparation.reader import PreparedFiles, read_prepared, seal
from hemafast.preparation.selection import refuse_excess, select_images
from hemafast.preparation.shards import digest, fingerprint, write_manifest, write_quarantine, write_shards, write_split
from hemafast.preparation.tables import lists
from hemafast.preparation.webdataset import write_webdataset
from hemafast.preparation.worklog import read_rows
from hemafast.progress import SILENT, Progress, stage

logger = logging.getLogger("hemafast")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prepared data set."""

    folder: Path
    files: PreparedFiles
    fresh: bool
    """False if it already existed and nothing was written."""

    @property
    def quarantine(self) -> list[schema.QuarantinedImage]:
        """The quarantined images, with reasons."""
        return schema.quarantined(self.files.columns("verdict", "path", "kind", "reason"))

    @property
    def info(self) -> schema.DatasetInfo:
        """The content of dataset.json."""
        return self.files.info


@dataclass(frozen=True, slots=True)
class PreparedPart:
    """A part of a data set that is read."""

    part: Part
    folder: Path
    images: int
    fresh: bool
    """False if it was there already, or the whole data set is, and nothing was read."""


def plan_preparation(config: PrepareConfig, *, progress: Progress = SILENT) -> Plan:
    """What `prepare` would take from the source, as what; nothing is decoded or written.

    Args:
        config: the settings.
        progress: receives the listing of each archive.

    Returns:
        The plan, for `prepare`.

    Raises:
        HemafastError: the source, a list or the output cannot be used.
    """
    _refuse_source_within(config)
    refuse_foreign(config.output.resolve())
    plan = make_plan(config, progress)
    if config.strict:
        refuse_lost(plan.passed)
    return plan


def prepare(
    config: PrepareConfig, plan: Plan | None = None, *, progress: Progress = SILENT, workers: int | None = None
) -> Prepared:
    """Turn the archives in `config.source` into a prepared data set at `config.output`.

    Writes nothing if the data set already exists, from the same archives and settings. After an interruption, the same
    call resumes.

    Args:
        config: the settings.
        plan: what `plan_preparation` returned for them, if it was called.
        progress: receives every stage: listing archives, reading images, and so on.
        workers: number of threads; by default one per core. The result does not depend on it.

    Returns:
        The data set. Its images are in the order of the manifest.

    Raises:
        HemafastError: the input cannot be used, or the disk is full. An older data set at `config.output` stays.
    """

    threads = _threads(workers)

    def read(known: _Known, folder: Path) -> pd.DataFrame:
        rows = range(known.plan.images)
        ingest(known.plan, known.sums, known.ranges, folder, rows, workers=threads, progress=progress)
        return read_rows(log_of(folder))

    plan = _recovered(config, plan, progress)
    return _existing_for(config, plan) or _publish(config, plan, read, threads, progress)


def prepare_part(
    config: PrepareConfig,
    part: Part,
    plan: Plan | None = None,
    *,
    progress: Progress = SILENT,
    workers: int | None = None,
) -> PreparedPart:
    """Read one part of the images, for `join`. Parts may be read at once, by any processes that share the disk.

    After an interruption, the same call resumes. A part that is finished is not read again.

    Args:
        config: the settings, the same for all parts.
        part: which part of how many.
        plan: what `plan_preparation` returned for the settings, if it was called.
        progress: receives every stage.
        workers: number of threads; by default one per core. The result does not depend on it.

    Returns:
        The part, in a hidden folder beside `config.output`.

    Raises:
        HemafastError: the input cannot be used, the disk is full, or another process is reading the same part.
    """
    plan = _recovered(config, plan, progress)
    whole, rows = config.output.resolve(), part.rows(plan.images)
    if _existing_for(config, plan) is not None:
        return PreparedPart(part, config.output, len(rows), fresh=False)
    threads = _threads(workers)
    sums, notes = choose_sums(plan, config.checksums, progress)
    with kept_beside(part.folder(whole, plan.ingest_key)) as folder:
        known = _look(plan, sums, notes, threads, progress)
        if is_read(folder, rows, known.digest):
            return PreparedPart(part, folder, len(rows), fresh=False)
        needed = plan.needed_bytes(1) * len(rows) // max(plan.images, 1)
        refuse_too_little_room(whole, max(0, needed - _bytes_in(folder)))
        ingest(known.plan, known.sums, known.ranges, folder, rows, workers=threads, progress=progress)
        mark_read(folder, rows, known.digest)
    return PreparedPart(part, folder, len(rows), fresh=True)


def join(
    config: PrepareConfig, plan: Plan | None = None, *, progress: Progress = SILENT, workers: int | None = None
) -> Prepared:
    """Make the data set of its parts, the same as `prepare` makes alone, and delete the parts.

    Args:
        config: the settings; those of the split may differ from the settings of the parts.
        plan: what `plan_preparation` returned for the settings, if it was called.
        progress: receives every stage.
        workers: number of threads that look at scales; by default one per core.

    Returns:
        The data set.

    Raises:
        HemafastError: a part is missing, damaged or of other settings, or the disk is full. All parts stay.
    """

    def collect(known: _Known, folder: Path) -> pd.DataFrame:
        return join_parts(parts, known.plan, known.digest, folder, progress)

    plan = _recovered(config, plan, progress)
    whole, key = config.output.resolve(), plan.ingest_key
    there = _existing_for(config, plan)
    if there is None:
        parts = find_parts(whole, key)
        there = _publish(config, plan, collect, _threads(workers), progress, originals=0)
    remove_parts(whole, key)
    return there


@dataclass(frozen=True, slots=True)
class _Known:
    """What must be known of a source before its images are read."""

    plan: Plan
    """With scales."""
    sums: Mapping[str, str]
    ranges: Mapping[str, dict[str, Range]]
    notes: tuple[str, ...]

    @property
    def digest(self) -> str:
        """sha256 over what was measured: all of it changes pixels."""
        ranges = {name: {kind: asdict(one) for kind, one in own.items()} for name, own in self.ranges.items()}
        by_side = {name: sorted(own.items()) for name, own in self.plan.windows_by_side.items()}
        return digest([ranges, dict(self.plan.windows), by_side])


def _look(plan: Plan, sums: Mapping[str, str], notes: tuple[str, ...], workers: int, progress: Progress) -> _Known:
    """Look at a sample of the images."""
    ranges = measure_ranges(plan, progress)
    return _Known(measure_scales(plan, ranges, workers=workers, progress=progress), sums, ranges, notes)


def _threads(workers: int | None) -> int:
    return workers or len(os.sched_getaffinity(0))


def _recovered(config: PrepareConfig, plan: Plan | None, progress: Progress) -> Plan:
    """Clean up after a kill, and make the plan if it is not there."""
    recover(config.output.resolve())
    return plan or plan_preparation(config, progress=progress)


def _existing_for(config: PrepareConfig, plan: Plan) -> Prepared | None:
    """The data set that is there, if it is the planned one."""
    existing = _existing(config.output)
    if existing is None:
        return None
    if existing.info.inputs == plan.inputs:
        refuse_excess(existing.columns("verdict", "path", "kind", "reason"), config)
        return Prepared(config.output, existing, fresh=False)
    logger.warning("%s is replaced: it was prepared from other files or with other settings", config.output)
    return None


def _publish(
    config: PrepareConfig,
    plan: Plan,
    collect: Callable[[_Known, Path], pd.DataFrame],
    workers: int,
    progress: Progress,
    *,
    originals: int = 1,
) -> Prepared:
    """Write the data set. `collect` fills its folder with images and squares, and returns their rows.

    `originals` is 0 if the bytes of the images are on the disk already.
    """
    whole = config.output.resolve()  # if the output is the current folder, a relative name would follow the old one
    sums, notes = choose_sums(plan, config.checksums, progress)
    with published_whole(whole, plan.ingest_key, progress=progress) as folder:
        refuse_too_little_room(whole, _needed_bytes(plan, config, folder, originals))
        known = _look(plan, sums, notes, workers, progress)
        images = collect(known, folder)
        with stage(progress, "finding duplicates"):
            manifest, more = select_images(images, config)
        _move_quarantined(folder, images, manifest)
        _write_lists(folder, manifest, plan, config, progress)
        looks = (*range_notes(manifest, known.ranges), *(one.note for one in find_implausible(manifest)))
        said = (*plan.notes, *known.notes, *more, *scale_notes(manifest, known.plan), *looks)
        _write_info(folder, manifest, known.plan, known.ranges, said, config)
    return Prepared(config.output, read_prepared(whole), fresh=True)


def _refuse_source_within(config: PrepareConfig) -> None:
    """The output is replaced as a whole, and archives inside it would be lost."""
    if config.source.resolve().is_relative_to(config.output.resolve()):
        raise HemafastError(
            f"The archives in {config.source} are inside the output {config.output}, which is replaced as a whole.",
            "Choose another --output.",
        )


def _existing(folder: Path) -> PreparedFiles | None:
    """The data set at `folder`; None if a file is missing or has another size. Images are not hashed."""
    try:
        files = read_prepared(folder)
        lists_there = all((folder / name).is_file() for name in files.info.files)
        sizes = [(folder / path).stat().st_size for path in files.images["path"]]
    except (HemafastError, OSError):
        return None
    return files if lists_there and sizes == files.images["bytes"].tolist() else None


def _needed_bytes(plan: Plan, config: PrepareConfig, folder: Path, originals: int) -> int:
    """Room for images, packed squares and tar files, less what an interrupted call left in `folder`."""
    tars = 1 + (config.folds or 0) if config.format == "webdataset" else 0
    return max(0, plan.needed_bytes(originals + tars) - _bytes_in(folder))


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def _move_quarantined(folder: Path, images: pd.DataFrame, manifest: pd.DataFrame) -> None:
    """Move the files of images that were quarantined after they were stored."""
    for before, after in zip(images["path"], manifest["path"], strict=True):
        if before != after:
            (folder / after).parent.mkdir(parents=True, exist_ok=True)
            (folder / before).rename(folder / after)


def _write_lists(folder: Path, manifest: pd.DataFrame, plan: Plan, config: PrepareConfig, progress: Progress) -> None:
    for name in (schema.SHARDS, schema.WEBDATASET):  # an interrupted call may have left others
        shutil.rmtree(folder / name, ignore_errors=True)
    write_manifest(folder, manifest)
    write_quarantine(folder, manifest)
    write_split(folder, manifest)
    write_shards(folder, manifest, plan.classes, folds=config.folds, count=config.shards)
    if config.format == "webdataset":
        write_webdataset(folder, manifest, plan.classes, folds=config.folds, count=config.shards, progress=progress)


def _write_info(
    folder: Path,
    manifest: pd.DataFrame,
    plan: Plan,
    ranges: Mapping[str, dict[str, Range]],
    notes: Sequence[str],
    config: PrepareConfig,
) -> None:
    info = schema.DatasetInfo(
        schema_version=schema.SCHEMA,
        fingerprint=fingerprint(manifest, plan.classes, plan.sizes),
        inputs=plan.inputs,
        classes=plan.classes,
        domains=_describe_domains(manifest, plan, ranges),
        counts={split: _count(schema.in_split(manifest, split)) for split in schema.splits_of(manifest)},
        account=account_for(manifest, plan.passed),
        pack_sizes=plan.sizes,
        rows_per_file={str(size): rows_per_file(size) for size in plan.sizes},
        folds=config.folds,
        notes=tuple(notes),
        settings=dict(plan.settings),
        versions=schema.versions(),
        files=_hash_files(folder),
        seal="",
    )
    sealed = info.model_copy(update={"seal": seal(info)})
    (folder / schema.INFO).write_text(sealed.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _describe_domains(
    manifest: pd.DataFrame, plan: Plan, ranges: Mapping[str, dict[str, Range]]
) -> dict[str, schema.DomainInfo]:
    verdicts = Counter(zip(manifest["domain"], manifest["verdict"], strict=True))
    images = Counter(manifest["domain"])
    return {
        name: schema.DomainInfo(
            archive=domain.archive,
            um_per_pixel=plan.um_per_pixel[name],
            drawn=domain.drawn,
            images=images[name],
            converted=verdicts[name, schema.CONVERTED],
            quarantined=verdicts[name, schema.QUARANTINED],
            ranges=ranges[name],
            scale=_scale_of(name, plan),
        )
        for name, domain in plan.domains.items()
    }


def _scale_of(domain: str, plan: Plan) -> schema.Scale:
    source = "unknown" if plan.um_per_pixel[domain] is None else plan.scale_sources[domain]
    return schema.Scale(source=source, estimate=plan.estimates.get(domain))


def _hash_files(folder: Path) -> dict[str, str]:
    """sha256 of every file except images and packed squares, whose hashes are in the manifest."""
    names = [schema.MANIFEST, schema.QUARANTINE, schema.SPLIT]
    for room in (schema.SHARDS, schema.WEBDATASET):
        names += sorted(path.relative_to(folder).as_posix() for path in (folder / room).glob("*"))
    return {name: lists.sha256_of(folder / name) for name in names}


def _count(images: pd.DataFrame) -> dict[str, dict[str, int]]:
    return {
        str(domain): {str(label): int(n) for label, n in part["label"].value_counts().sort_index().items()}
        for domain, part in images.groupby("domain")
    }
