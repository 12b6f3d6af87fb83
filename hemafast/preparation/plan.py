"""Plan a preparation: the images, classes, scales and checksums it works with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from hemafast.config import AUTO_FIELD_OF_VIEW, PrepareConfig, to_plain
from hemafast.errors import HemafastError
from hemafast.preparation import schema
from hemafast.preparation.scale import METHOD, ScaleEstimate
from hemafast.preparation.shards import Streamed, digest
from hemafast.preparation.sources.gather import Domain, Member, gather
from hemafast.preparation.sources.survey import PassedOver
from hemafast.preparation.split import TRAIN, fair_order
from hemafast.preparation.tables import lists
from hemafast.progress import SILENT, Progress, stage
from hemafast.taxonomy import CHALLENGE_CLASSES, UM_PER_PIXEL
from hemafast.words import counted

_NOT_INPUT = ("source", "output", "strict", "max_quarantined")  # settings that do not change the result
_FILES = ("groups", "checksums", "class_map", "labels_fix")
_ADDED = ("labels_fix", "test_fraction")  # of later versions: not asked for, they leave older data sets as they are
_OF_PIXELS = ("checksums", "field_of_view", "um_per_pixel", "bit_depth", "min_side")  # settings that pixels depend on
_SMALLEST_WINDOW = 16  # px

Name = TypeVar("Name", str, int)


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
    """By domain; None if unknown, or still to be estimated."""
    scale_sources: Mapping[str, schema.ScaleSource]
    """By domain: how its scale is known, or whether it is estimated."""
    settings: Mapping[str, Any]
    """Everything but the archives that the result depends on."""
    sizes: tuple[int, ...]
    """Sides of the packed squares in pixels."""
    windows: Mapping[str, int]
    """By domain: side in px of the centre square to keep. For domains that are not listed, the largest square."""
    windows_required: bool
    """Whether images smaller than their window are quarantined. Otherwise their edges are repeated."""
    estimates: Mapping[str, ScaleEstimate] = field(default_factory=dict)
    """By domain: what its nuclei say about its scale, as far as they were looked at."""
    windows_by_side: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    """By domain and shorter side in px: windows of sizes that have a scale of their own."""

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.members)

    @property
    def inputs(self) -> str:
        """sha256 over everything that the result depends on."""
        return digest([schema.SCHEMA, self._listing(), dict(self.settings), *self._to_estimate()])

    @property
    def ingest_key(self) -> str:
        """Hash of what bytes and pixels depend on, without the split: an interrupted call with the same key resumes."""
        chosen = {name: self.settings[name] for name in _OF_PIXELS}
        estimated = self._to_estimate()
        return digest([schema.SCHEMA, self._listing(), self.sizes, chosen, schema.versions(), *estimated])[:16]

    def window(self, domain: str, shorter_side: int) -> int:
        """Side in px of the centre square to keep of an image; it may be larger than the image."""
        own = self.windows_by_side.get(domain, {})
        return own.get(shorter_side, self.windows.get(domain, shorter_side))

    def order(self) -> npt.NDArray[np.int64]:
        """(images,): for each row of the manifest and of the packed pixels, the position of its image in `members`."""
        names = ((member.domain, member.label, member.name) for member in self.members)
        return fair_order(pd.DataFrame.from_records(names, columns=["domain", "label", "path"]))

    def needed_bytes(self, copies: int) -> int:
        """Bytes of `copies` copies of the original files, and of the packed squares."""
        originals = sum(member.entry.size for member in self.members)
        return originals * copies + self.images * sum(3 * size**2 for size in self.sizes)

    def _to_estimate(self) -> list[Any]:
        """What the result depends on where scales are estimated; empty if all are known."""
        names = [name for name, source in self.scale_sources.items() if source == "estimated"]
        return [METHOD, names] if names else []

    def _listing(self) -> Streamed:
        drawn = [[name, domain.drawn] for name, domain in self.domains.items()]
        images = (
            [one.domain, one.label, one.file, one.split, one.group, one.source, one.entry.size, one.entry.stamp]
            for one in self.members
        )
        return Streamed((drawn, Streamed(images), [[one.kind, one.name] for one in self.passed]))


def make_plan(config: PrepareConfig, progress: Progress = SILENT) -> Plan:
    """List the source. Raises HemafastError for archives that are unsafe or do not fit the settings."""
    found = gather(config, progress)
    scales, sources = _choose_scales(list(found.domains), found.um_per_pixel, config)
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
        scale_sources=sources,
        settings=settings,
        sizes=tuple(settings["pack_sizes"]),
        windows=choose_windows(scales, config.field_of_view),
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
    notes = [f"{counted(unlisted, 'image is', 'images are')} not in {file.name}"] if unlisted else []
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
) -> tuple[dict[str, float | None], dict[str, schema.ScaleSource]]:
    """Micrometres per pixel of each domain, None without one, and how they are known or that they are estimated."""
    _refuse_unknown(config.um_per_pixel, domains, "--um-per-pixel")
    given = {name: scale for name, scale in config.um_per_pixel.items() if scale != "unknown"}
    known: dict[str, tuple[float | None, schema.ScaleSource]] = {}
    known |= {name: (scale, "known archive") for name, scale in UM_PER_PIXEL.items()}
    known |= {name: (scale, "table") for name, scale in listed.items()}
    known |= {name: (scale, "given") for name, scale in given.items()}
    known |= dict.fromkeys(config.um_per_pixel.keys() - given.keys(), (None, "unknown"))
    chosen = {name: known.get(name, (None, "estimated")) for name in domains}
    for name, (_, source) in chosen.items():
        if source == "unknown":
            refuse_no_scale(name, config.field_of_view, "")
    return {name: scale for name, (scale, _) in chosen.items()}, {name: source for name, (_, source) in chosen.items()}


def refuse_no_scale(domain: str, field_of_view: float | str, why: str) -> None:
    """Raise HemafastError if a field of view in micrometres is asked for."""
    if isinstance(field_of_view, float):
        remedy = f"Give them with --um-per-pixel {domain}=0.1, or leave out --field-of-view."
        raise HemafastError(f"The micrometres per pixel of {domain} are unknown{why}.", remedy)


def choose_windows(scales: Mapping[Name, float | None], field_of_view: float | str) -> dict[Name, int]:
    """Side in px of the field of view for each known scale, by the names of `scales`.

    Raises HemafastError for a scale at which too few pixels are left.
    """
    if field_of_view == "whole":
        return {}
    field = AUTO_FIELD_OF_VIEW if isinstance(field_of_view, str) else field_of_view
    windows = {name: round(field / scale) for name, scale in scales.items() if scale is not None}
    for name, side in windows.items():
        if side < _SMALLEST_WINDOW:
            raise HemafastError(
                f"{field:g} um are {side} pixels of {name} at {scales[name]:g} um/px: too few to show a cell.",
                "Check --um-per-pixel and --field-of-view; both are in micrometres.",
            )
    return windows


def _refuse_unknown(names: Iterable[str], domains: Sequence[str], option: str) -> None:
    for name in names:
        if name not in domains:
            raise HemafastError(f"{option} names {name}, which is no domain.", f"Choose from {', '.join(domains)}.")


def _settings(config: PrepareConfig) -> dict[str, Any]:
    """Settings that change the result, with files replaced by their sha256."""
    plain = to_plain(config).items()
    settings = {name: value for name, value in plain if name not in _NOT_INPUT and (value or name not in _ADDED)}
    settings["pack_sizes"] = sorted(set(settings["pack_sizes"]), reverse=True)
    files = {name: getattr(config, name) for name in _FILES}
    try:
        single = {name: lists.sha256_of(file) for name, file in files.items() if isinstance(file, Path)}
        return settings | single | {"split_file": [lists.sha256_of(file) for file in config.split_file]}
    except OSError as error:
        raise HemafastError(f"{error.filename} cannot be read ({error.strerror}).", "Name a text file.") from error
