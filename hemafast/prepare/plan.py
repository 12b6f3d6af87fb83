"""What is to be read and how: the archives, classes, scales and checksums that a preparation works with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from hemafast.config import AUTO_FIELD_OF_VIEW, PrepareConfig, to_plain
from hemafast.errors import HemafastError, name_some
from hemafast.prepare import lists, schema
from hemafast.prepare.archive import Archive, find_archives, open_archive
from hemafast.prepare.safety import find_collision
from hemafast.prepare.shards import digest
from hemafast.prepare.split import fair_order
from hemafast.taxonomy import CHALLENGE_CLASSES, UM_PER_PIXEL

_NOT_INPUT = ("source", "output", "strict", "max_quarantined")  # settings that change nothing in the result
_FILES = ("split_file", "groups", "checksums")
_NAMED = 3  # files that a note lists
_SMALLEST_WINDOW = 16  # px
_SAME_SIZE = 1.05  # largest over smallest side in one domain; more looks as if some images had been resampled


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be read, and how."""

    archives: tuple[Archive, ...]
    classes: tuple[str, ...]
    um_per_pixel: Mapping[str, float | None]
    """By domain; None where it is not known."""
    settings: Mapping[str, Any]
    """What the result depends on, but for the archives."""
    sizes: tuple[int, ...]
    """Sides of the packed squares in pixels."""
    windows: Mapping[str, int]
    """By domain: side in pixels of the centre square that is kept; the largest square for a domain that is not here."""
    windows_required: bool
    """Whether an image that shows less than its window is quarantined, rather than kept as far as it goes."""

    @property
    def images(self) -> int:
        """How many there are."""
        return sum(len(archive.members) for archive in self.archives)

    @property
    def inputs(self) -> str:
        """sha256 over everything that the result depends on."""
        return digest([schema.SCHEMA, self._listing(), dict(self.settings)])

    @property
    def ingest_key(self) -> str:
        """The same of what bytes and pixels depend on, whatever the split."""
        chosen = {name: self.settings[name] for name in ("checksums", "field_of_view", "um_per_pixel")}
        return digest([schema.SCHEMA, self._listing(), self.sizes, chosen, schema.versions()])[:16]

    def names(self) -> list[str]:
        """The name `domain/class/file` of every image."""
        return [name for archive in self.archives for name in archive.names()]

    def rows(self) -> dict[str, int]:
        """The row of each image in the manifest and in the packed pixels, by its name."""
        images = pd.DataFrame({"name": self.names()})
        images[["domain", "label"]] = images["name"].str.split("/", expand=True)[[0, 1]]
        ordered = images["name"].to_numpy()[fair_order(images, "name")]
        return {name: row for row, name in enumerate(ordered)}

    def needed_bytes(self, copies: int) -> int:
        """Room for so many copies of the original bytes, and for the packed squares."""
        originals = sum(member.entry.size for archive in self.archives for member in archive.members)
        return originals * copies + self.images * sum(3 * size**2 for size in self.sizes)

    def _listing(self) -> list[Any]:
        return [
            [archive.domain, archive.drawn, [[m.entry.name, m.entry.size, m.entry.stamp] for m in archive.members]]
            for archive in self.archives
        ]


def make_plan(config: PrepareConfig) -> Plan:
    """List the archives. Raises HemafastError for archives that cannot be trusted, or that do not fit the settings."""
    archives = tuple(open_archive(path) for path in find_archives(config.source, config.output))
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


def choose_sums(plan: Plan, file: Path | None) -> tuple[dict[str, str], tuple[str, ...]]:
    """The sha256 that each image must have, by its name, and what there is to say about the list.

    Raises HemafastError for an archive that is not the one in the list.
    """
    if file is None:
        return {}, ()
    listed = lists.read_checksums(file)
    loose, archives = [], 0
    for archive in plan.archives:
        own = [name for name in listed if PurePosixPath(name).name == archive.path.name and archive.path.is_file()]
        archives += len(own)
        if any(listed.pop(name) != lists.sha256_of(archive.path) for name in own):
            raise HemafastError(f"{archive.path} is not the archive that {file} lists.", "Download it again.")
        loose += [] if own else archive.names()
    sums = lists.resolve(file, listed.items(), plan.names())
    if not archives and not sums:
        raise HemafastError(f"{file} names neither an archive nor an image here.", "Is it the right list?")
    unlisted, strange = sum(name not in sums for name in loose), len(listed) - len(sums)
    notes = [f"{unlisted} images are not in {file.name}"] if unlisted else []
    notes += [f"{strange} entries of {file.name} are no image here"] if strange > 0 else []
    return sums, tuple(notes)


def _choose_classes(archives: tuple[Archive, ...], config: PrepareConfig) -> tuple[str, ...]:
    if config.classes == "from-data":
        classes = tuple(sorted(set.union(*(archive.classes for archive in archives))))
        if twice := find_collision(classes):
            raise HemafastError(
                f"There are classes {twice[0]} and {twice[1]}.", "Give a class one name in all archives."
            )
        return classes
    for archive in archives:
        unknown = sorted(archive.classes - set(CHALLENGE_CLASSES))
        if unknown:
            raise HemafastError(
                f"{archive.path}: {unknown[0]!r} is none of the {len(CHALLENGE_CLASSES)} challenge classes.",
                "Rename it, or take the class folders as they are with --classes from-data.",
            )
    return CHALLENGE_CLASSES


def _choose_scales(archives: tuple[Archive, ...], config: PrepareConfig) -> dict[str, float | None]:
    """Micrometres a pixel spans in each domain, as far as that is known."""
    _refuse_unknown(config.um_per_pixel, archives, "--um-per-pixel")
    known = UM_PER_PIXEL | config.um_per_pixel
    scales = {archive.domain: known.get(archive.domain) for archive in archives}
    unknown = [domain for domain, scale in scales.items() if scale is None]
    if isinstance(config.field_of_view, float) and unknown:
        raise HemafastError(
            f"How many micrometres a pixel of {unknown[0]} spans is not known.",
            f"Say so with --um-per-pixel {unknown[0]}=0.1, or leave out --field-of-view.",
        )
    return scales


def _choose_windows(scales: Mapping[str, float | None], config: PrepareConfig) -> dict[str, int]:
    """The side in pixels of the field of view in each domain whose scale is known."""
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
    """What there is to say about images that no class folder holds, and that are ignored for that."""
    notes = []
    for archive in plan.archives:
        if lost := archive.misplaced:
            named = name_some(lost, _NAMED)
            notes.append(f"{archive.domain}: {len(lost)} images are in no class folder and were ignored: {named}")
    return tuple(notes)


def scale_notes(manifest: pd.DataFrame, plan: Plan) -> tuple[str, ...]:
    """What there is to say about domains whose cells may appear in another size than those of the others."""
    by_domain = schema.accepted(manifest).groupby("domain")
    return tuple(note for domain, images in by_domain for note in _scale_notes(str(domain), images, plan))


def _scale_notes(domain: str, images: pd.DataFrame, plan: Plan) -> Iterator[str]:
    window = plan.windows.get(domain)
    if window is None:
        if len(plan.archives) > 1 and plan.um_per_pixel[domain] is None:
            yield f"{domain}: um/px unknown, images kept whole; say it with --um-per-pixel {domain}=0.1"
        return
    if small := int((images["window"] < window).sum()):
        yield f"{domain}: {small} images show less than {window} px and are kept as far as they go"
    sides = images[["width", "height"]].min(axis=1)
    if sides.max() > _SAME_SIZE * sides.min():
        yield (
            f"{domain}: images of {sides.min()} to {sides.max()} px; {plan.um_per_pixel[domain]} um/px is taken to "
            "hold for all, which is wrong for those that were resampled"
        )


def _refuse_unknown(domains: Iterable[str], archives: tuple[Archive, ...], option: str) -> None:
    present = [archive.domain for archive in archives]
    for domain in domains:
        if domain not in present:
            raise HemafastError(f"{option} names {domain}, which is no archive.", f"There are: {', '.join(present)}.")


def _settings(config: PrepareConfig) -> dict[str, Any]:
    """What the result depends on; files by their content, for a list may change under its name."""
    settings = {name: value for name, value in to_plain(config).items() if name not in _NOT_INPUT}
    settings["pack_sizes"] = sorted(set(settings["pack_sizes"]), reverse=True)
    for name in _FILES:
        file: Path | None = getattr(config, name)
        if file is not None:
            settings[name] = _sha256_of_list(file)
    return settings


def _sha256_of_list(file: Path) -> str:
    try:
        return lists.sha256_of(file)
    except OSError as error:
        raise HemafastError(f"{file} cannot be read ({error.strerror}).", "Name a text file.") from error
