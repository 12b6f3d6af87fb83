"""The range of values of each domain, and what is said about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import pandas as pd

from hemafast.preparation import schema
from hemafast.preparation.images.depth import Range, choose_ranges, fixed, may_be_deep
from hemafast.preparation.images.image_checks import strict_decoders
from hemafast.preparation.plan import Plan
from hemafast.preparation.sources.containers import reader_of
from hemafast.preparation.sources.gather import Member
from hemafast.progress import SILENT, Progress, stage
from hemafast.words import counted


def measure_ranges(plan: Plan, progress: Progress = SILENT) -> dict[str, dict[str, Range]]:
    """By domain, what values of more than 8 bits become: as --bit-depth says, else as a sample of its images shows.

    Raises HemafastError if an archive is damaged.
    """
    bits: Mapping[str, int] = plan.settings["bit_depth"]
    members: dict[str, list[Member]] = {name: [] for name in plan.domains}
    for member in in_stored_order(plan.members):
        members[member.domain].append(member)
    ranges = {}
    with stage(progress, "looking at bit depths", len(members), unit="domains"), strict_decoders():
        for name, own in members.items():
            chosen = bits.get(name, bits.get(""))
            ranges[name] = fixed(chosen) if chosen else choose_ranges(_maybe_deep(own), contents_of)
            progress.advance()
    return ranges


def _maybe_deep(members: Sequence[Member]) -> Sequence[Member]:
    """Without those that never have more than 8 bits, among which a deep image would not be found."""
    return [one for one in members if may_be_deep(one.file)]


def in_stored_order(members: Sequence[Member]) -> list[Member]:
    """The members in the order in which their archives hold them."""
    return sorted(members, key=place_of)


def place_of(member: Member) -> tuple[Path, int]:
    """What members are sorted by to read them fastest."""
    return member.entry.container, member.entry.offset


def range_notes(manifest: pd.DataFrame, ranges: Mapping[str, Mapping[str, Range]]) -> Iterator[str]:
    """How the values of each domain were scaled, where any have more than 8 bits."""
    accepted = schema.accepted(manifest)
    scaled = accepted[accepted["kind"].str.split("+").map(lambda kinds: "scaled" in kinds)]
    for domain, images in scaled.groupby("domain"):
        words = " and ".join(f"{kind} values of {one}" for kind, one in _distinct(ranges[str(domain)]))
        yield (
            f"{domain}: {counted(len(images), 'image has', 'images have')} more than 8 bits a channel; "
            f"{words} become 0 to 255. "
            f"Choose another range with --bit-depth {domain}=16"
        )


def _distinct(ranges: Mapping[str, Range]) -> list[tuple[str, Range]]:
    """The ranges by kind; one kind for a range that holds for all."""
    return [("all", next(iter(ranges.values())))] if len(set(ranges.values())) == 1 < len(ranges) else [*ranges.items()]


def contents_of(members: Sequence[Member]) -> Iterator[bytes]:
    """The bytes of each image, given in stored order. Raises HemafastError if an archive is damaged."""
    for container, some in groupby(members, key=lambda one: one.entry.container):
        with reader_of(container) as read:
            for member in some:
                yield read(member.entry)
