"""Plan a preparation: the images, classes, scales and checksums it works with."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from hemafast.config import AUTO_FIELD_OF_VIEW, PrepareConfig, to_plain
from hemafast.errors import HemafastError
from hemafast.preparation import schema
from hemafast.preparation.shards import digest
from hemafast.preparation.sources.gather import Domain, Member, gather
from hemafast.preparation.sources.survey import PassedOver
from hemafast.preparation.split import TRAIN, fair_order
from hemafast.preparation.tables import lists
from hemafast.progress import SILENT, Progress, stage
from hemafast.taxonomy import CHALLENGE_CLASSES, UM_PER_PIXEL

_NOT_INPUT = ("source", "output", "strict", "max_quarantined")  # settings that do not change the result
_FILES = ("groups", "checksums", "class_map")
_OF_PIXELS = ("checksums", "field_of_view", "um_per_pixel", "bit_depth", "min_side")  # settings that pixels depend on
_SMALLEST_WINDOW = 16  # px
_SAME_SIZE = 1.05  # largest over smallest side in a domain; beyond it, some images were probably resampled


@dataclass(frozen=True, slots=True)
class Plan:
    """What to read, and how."""

    members: tuple[Member, ...]
    """The images."""
    domains: Mapping[str, Domain]
    """By name."""
    passed: tuple[PassedOver, ...]
    """Every other file of the source."""
    notes: tuple[str, ...]
    """How folders, names and tables were understood."""
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
        chosen = {name: self.settings[name] for name in _OF_PIXELS}
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
        drawn = [[name, domain.drawn] for name, domain in self.domains.items()]
        images = [
            [one.domain, one.label, one.file, one.split, one.group, one.source, one.entry.size, one.entry.stamp]
            for one in self.members
        ]
        return [drawn, images, [[one.kind, one.name] for one in self.passed]]


def make_plan(config: PrepareConfig, progress: Progress = SILENT) -> Plan:
    """List the source. Raises HemafastError for archives that are unsafe or do not fit the settings."""
    found = gather(config, progress)
    scales = _choose_scales(list(found.domains), found.um_per_pixel, config)
    if config.holdout_domain is not None:
        _refuse_unknown([config.holdout_domain], list(found.domains), "--holdout-domain")
    _refuse_unknown([name for name in config.bit_depth if name], list(found.domains), "--bit-depth")
    settings = _settings(config) | {"labels": found.labels_sha256}
    members, listed = _with_listed_splits(found.members, config)
    return Plan(
        members=_with_listed_groups(members, config),
        domains=found.domains,
        passed=found.passed,
        notes=(*found.notes, *_class_notes(found.members, config), *listed),
        classes=_choose_classes(found.members, config),
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
    containers: dict[Path, list[Member]] = {}
    for member in plan.members:
        containers.setdefault(member.entry.container, []).append(member)
    loose, archives = [], 0
    with stage(progress, "hashing archives", len(containers), unit="archives"):
        for path, members in containers.items():
            own = [name for name in listed if PurePosixPath(name).name == path.name and path.is_file()]
            archives += len(own)
            if any(listed.pop(name) != lists.sha256_of(path) for name in own):
                raise HemafastError(f"{path} is not the archive that {file} lists.", "Download it again.")
            loose += [] if own else [member.name for member in members]
            progress.advance()
    sums = lists.resolve(file, listed.items(), paths_of(plan.members)).values
    if not archives and not sums:
        raise HemafastError(f"{file} lists no archive and no image of this source.", "Check that it is the right list.")
    unlisted, strange = sum(name not in sums for name in loose), len(listed) - len(sums)
    notes = [f"{unlisted} images are not in {file.name}"] if unlisted else []
    notes += (
        [f"{strange} {'entry' if strange == 1 else 'entries'} of {file.name} match{'es' * (strange == 1)} no image"]
        if strange > 0
        else []
    )
    return sums, tuple(notes)


def _choose_classes(members: Iterable[Member], config: PrepareConfig) -> tuple[str, ...]:
    return CHALLENGE_CLASSES if config.classes == "challenge" else tuple(sorted({member.label for member in members}))


def _class_notes(members: Iterable[Member], config: PrepareConfig) -> list[str]:
    present = {member.label for member in members}
    if config.classes != "challenge" or len(present) == len(CHALLENGE_CLASSES):
        return []
    known = f"{len(present)} of the {len(CHALLENGE_CLASSES)} classes have images"
    return [f"{known}; to train on these alone, prepare with --classes from-data"]


def _with_listed_splits(members: Sequence[Member], config: PrepareConfig) -> tuple[Sequence[Member], tuple[str, ...]]:
    """The images with the split that --split-file gives them, empty if none, and notes about what it lists.

    Raises HemafastError if it leaves none for training.
    """
    if not config.split_file:
        return members, ()
    found = lists.resolve_split(config.split_file, paths_of(members))
    if TRAIN not in found.values.values():
        files = " and ".join(map(str, config.split_file))
        raise HemafastError(
            f"{files} lists no training image.", "Name the training images too: --split-file FILE again."
        )
    listed = [replace(member, split=found.values.get(member.name, "")) for member in members]
    return listed, replace(found, unlisted=()).notes()  # what is not listed is quarantined by name


def _with_listed_groups(members: Sequence[Member], config: PrepareConfig) -> tuple[Member, ...]:
    """The images with the patient or slide that --groups gives them, empty if none."""
    if config.groups is None:
        return tuple(members)
    groups = lists.resolve_values(config.groups, "group", paths_of(members)).values
    return tuple(replace(member, group=groups.get(member.name, "")) for member in members)


def paths_of(members: Iterable[Member]) -> dict[str, tuple[str, ...]]:
    """The paths that a list may name each image by: its name, and its path in the source."""
    return {member.name: (member.name, member.source) for member in members}


def _choose_scales(
    domains: Sequence[str], listed: Mapping[str, float], config: PrepareConfig
) -> dict[str, float | None]:
    """Micrometres per pixel of each domain; None if unknown."""
    _refuse_unknown(config.um_per_pixel, domains, "--um-per-pixel")
    known = UM_PER_PIXEL | dict(listed) | config.um_per_pixel
    scales = {domain: known.get(domain) for domain in domains}
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


def scale_notes(manifest: pd.DataFrame, plan: Plan) -> Iterator[str]:
    """Notes about domains whose cells may appear larger or smaller than those of the others."""
    for domain, images in schema.accepted(manifest).groupby("domain"):
        window, scale = plan.windows.get(str(domain)), plan.um_per_pixel[str(domain)]
        sides = images[["width", "height"]].min(axis=1)
        if window is None and scale is None:
            scaled = f"{shlex.quote(str(domain))}=NUMBER"
            yield f"{domain}: um/px unknown, images are kept whole; give it with --um-per-pixel {scaled}"
        if window is not None and (small := int((images["window"] < window).sum())):
            yield f"{domain}: {small} images are smaller than the field of view of {window} px and are kept whole"
        if window is not None and sides.max() > _SAME_SIZE * sides.min():
            yield (
                f"{domain}: images of {sides.min()} to {sides.max()} px; {scale} um/px "
                "is used for all, which is wrong for images that were resampled"
            )


def _refuse_unknown(names: Iterable[str], domains: Sequence[str], option: str) -> None:
    for name in names:
        if name not in domains:
            raise HemafastError(f"{option} names {name}, which is no domain.", f"Choose from {', '.join(domains)}.")


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
