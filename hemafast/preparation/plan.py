"""Plan a preparation: the archives, classes, scales and checksums it works with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from hemafast.config import AUTO_FIELD_OF_VIEW, PrepareConfig, to_plain
from hemafast.errors import HemafastError, name_some
from hemafast.preparation import lists, schema
from hemafast.preparation.archive import Archive, Member, find_archives, is_image, open_archive
from hemafast.preparation.safety import find_collision
from hemafast.preparation.shards import digest
from hemafast.preparation.split import fair_order
from hemafast.progress import SILENT, Progress, stage
from hemafast.taxonomy import CHALLENGE_CLASSES, UM_PER_PIXEL

_NOT_INPUT = ("source", "output", "strict", "max_quarantined")  # settings that do not change the result
_FILES = ("split_file", "groups", "checksums", "labels", "class_map")
_NAMED = 3  # files that a note lists
_SMALLEST_WINDOW = 16  # px
_SAME_SIZE = 1.05  # largest over smallest side in a domain; beyond it, some images were probably resampled


@dataclass(frozen=True, slots=True)
class Plan:
    """What to read, and how."""

    archives: tuple[Archive, ...]
    classes: tuple[str, ...]
    um_per_pixel: Mapping[str, float | None]
    """By domain; None if unknown."""
    settings: Mapping[str, Any]
    """Everything but the archives that the result depends on."""
    sizes: tuple[int, ...]
    """Sides of the packed squares in pixels."""
    windows: Mapping[str, int]
    """By domain: side in px of the centre square to keep. For domains that are not listed, the largest square."""
    windows_required: bool
    """Whether images smaller than their window are quarantined. Otherwise they are kept whole."""

    @property
    def members(self) -> list[Member]:
        """The images of all archives."""
        return [member for archive in self.archives for member in archive.members]

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.members)

    @property
    def inputs(self) -> str:
        """sha256 over everything that the result depends on."""
        return digest([schema.SCHEMA, self._listing(), dict(self.settings)])

    @property
    def ingest_key(self) -> str:
        """Hash of what bytes and pixels depend on, without the split: an interrupted call with the same key resumes."""
        chosen = {name: self.settings[name] for name in ("checksums", "field_of_view", "um_per_pixel")}
        return digest([schema.SCHEMA, self._listing(), self.sizes, chosen, schema.versions()])[:16]

    def rows(self) -> dict[str, int]:
        """The row of each image in the manifest and the packed pixels, by name."""
        names = [(member.domain, member.label, member.name) for member in self.members]
        images = pd.DataFrame(names, columns=["domain", "label", "path"])
        return {name: row for row, name in enumerate(images["path"].to_numpy()[fair_order(images)])}

    def needed_bytes(self, copies: int) -> int:
        """Bytes of `copies` copies of the original files, and of the packed squares."""
        originals = sum(member.entry.size for member in self.members)
        return originals * copies + self.images * sum(3 * size**2 for size in self.sizes)

    def _listing(self) -> list[Any]:
        return [
            [archive.domain, archive.drawn, [[m.entry.name, m.entry.size, m.entry.stamp] for m in archive.members]]
            for archive in self.archives
        ]


def make_plan(config: PrepareConfig, progress: Progress = SILENT) -> Plan:
    """List the archives. Raises HemafastError for archives that are unsafe or do not fit the settings."""
    archives: tuple[Archive, ...] = ()
    paths = find_archives(config.source, config.output)
    with stage(progress, "listing archives", len(paths), unit="archives"):
        for path in paths:
            archives += (open_archive(path),)
            progress.advance()
    classes = _choose_classes(archives, config)
    scales = _choose_scales(archives, config)
    if config.holdout_domain is not None:
        _refuse_unknown([config.holdout_domain], archives, "--holdout-domain")
    settings = _settings(config)
    return Plan(
        archives=archives,
        classes=classes,
        um_per_pixel=scales,
        settings=settings,
        sizes=tuple(settings["pack_sizes"]),
        windows=_choose_windows(scales, config),
        windows_required=isinstance(config.field_of_view, float),
    )


def choose_sums(plan: Plan, file: Path | None, progress: Progress = SILENT) -> tuple[dict[str, str], tuple[str, ...]]:
    """The sha256 that each image must have, by name, and notes about the list of checksums in `file`.

    Raises HemafastError for an archive that differs from the listed one.
    """
    if file is None:
        return {}, ()
    listed = lists.read_checksums(file)
    loose, archives = [], 0
    with stage(progress, "hashing archives", len(plan.archives), unit="archives"):
        for archive in plan.archives:
            own = [name for name in listed if PurePosixPath(name).name == archive.path.name and archive.path.is_file()]
            archives += len(own)
            if any(listed.pop(name) != lists.sha256_of(archive.path) for name in own):
                raise HemafastError(f"{archive.path} is not the archive that {file} lists.", "Download it again.")
            loose += [] if own else [member.name for member in archive.members]
            progress.advance()
    sums = lists.resolve(file, listed.items(), [member.name for member in plan.members]).values
    if not archives and not sums:
        raise HemafastError(f"{file} lists no archive and no image of this source.", "Check that it is the right list.")
    unlisted, strange = sum(name not in sums for name in loose), len(listed) - len(sums)
    notes = [f"{unlisted} images are not in {file.name}"] if unlisted else []
    notes += [f"{strange} entries of {file.name} match no image"] if strange > 0 else []
    return sums, tuple(notes)


def _choose_classes(archives: tuple[Archive, ...], config: PrepareConfig) -> tuple[str, ...]:
    if config.classes == "from-data":
        classes = tuple(sorted(set.union(*(archive.classes for archive in archives))))
        if twice := find_collision(classes):
            raise HemafastError(f"Two classes are named {twice[0]} and {twice[1]}.", "Use one name in all archives.")
        return classes
    for archive in archives:
        if unknown := sorted(archive.classes - set(CHALLENGE_CLASSES)):
            raise HemafastError(
                f"{archive.path}: {unknown[0]!r} is not one of the {len(CHALLENGE_CLASSES)} challenge classes.",
                "Rename it, or take the classes from the folders with --classes from-data.",
            )
    return CHALLENGE_CLASSES


def _choose_scales(archives: tuple[Archive, ...], config: PrepareConfig) -> dict[str, float | None]:
    """Micrometres per pixel of each domain; None if unknown."""
    _refuse_unknown(config.um_per_pixel, archives, "--um-per-pixel")
    known = UM_PER_PIXEL | config.um_per_pixel
    scales = {archive.domain: known.get(archive.domain) for archive in archives}
    unknown = [domain for domain, scale in scales.items() if scale is None]
    if isinstance(config.field_of_view, float) and unknown:
        remedy = f"Give them with --um-per-pixel {unknown[0]}=0.1, or leave out --field-of-view."
        raise HemafastError(f"The micrometres per pixel of {unknown[0]} are unknown.", remedy)
    return scales


def _choose_windows(scales: Mapping[str, float | None], config: PrepareConfig) -> dict[str, int]:
    """Side in px of the field of view, for each domain with a known scale."""
    if config.field_of_view == "whole":
        return {}
    field = AUTO_FIELD_OF_VIEW if config.field_of_view == "auto" else config.field_of_view
    windows = {domain: round(field / scale) for domain, scale in scales.items() if scale is not None}
    for domain, side in windows.items():
        if side < _SMALLEST_WINDOW:
            raise HemafastError(
                f"{field:g} um are {side} pixels of {domain} at {scales[domain]:g} um/px: too few to show a cell.",
                "Check --um-per-pixel and --field-of-view; both are in micrometres.",
            )
    return windows


def layout_notes(plan: Plan) -> tuple[str, ...]:
    """Notes about images that are ignored because they are not in a class folder."""
    return tuple(
        f"{archive.domain}: {len(lost)} images are not in a class folder and were ignored: {name_some(lost, _NAMED)}"
        for archive in plan.archives
        if (lost := [name for name in archive.ignored if is_image(name)])
    )


def scale_notes(manifest: pd.DataFrame, plan: Plan) -> Iterator[str]:
    """Notes about domains whose cells may appear larger or smaller than those of the others."""
    for domain, images in schema.accepted(manifest).groupby("domain"):
        window, scale = plan.windows.get(str(domain)), plan.um_per_pixel[str(domain)]
        sides = images[["width", "height"]].min(axis=1)
        if window is None and scale is None and len(plan.archives) > 1:
            yield f"{domain}: um/px unknown, images are kept whole; give it with --um-per-pixel {domain}=0.1"
        if window is not None and (small := int((images["window"] < window).sum())):
            yield f"{domain}: {small} images are smaller than the field of view of {window} px and are kept whole"
        if window is not None and sides.max() > _SAME_SIZE * sides.min():
            yield (
                f"{domain}: images of {sides.min()} to {sides.max()} px; {scale} um/px "
                "is used for all, which is wrong for images that were resampled"
            )


def _refuse_unknown(domains: Iterable[str], archives: tuple[Archive, ...], option: str) -> None:
    present = [archive.domain for archive in archives]
    for domain in domains:
        if domain not in present:
            raise HemafastError(f"{option} names {domain}, which is no archive.", f"Choose from {', '.join(present)}.")


def _settings(config: PrepareConfig) -> dict[str, Any]:
    """Settings that change the result, with files replaced by their sha256."""
    settings = {name: value for name, value in to_plain(config).items() if name not in _NOT_INPUT}
    settings["pack_sizes"] = sorted(set(settings["pack_sizes"]), reverse=True)
    files = {name: getattr(config, name) for name in _FILES}
    try:
        single = {name: lists.sha256_of(file) for name, file in files.items() if isinstance(file, Path)}
        return settings | single | {"split_file": [lists.sha256_of(file) for file in config.split_file]}
    except OSError as error:
        raise HemafastError(f"{error.filename} cannot be read ({error.strerror}).", "Name a text file.") from error
