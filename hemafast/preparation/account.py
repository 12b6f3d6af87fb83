"""Account for every file of a source: training, validation, test, quarantined, or passed over as what it is."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import pandas as pd

from hemafast.errors import LossError, name_some
from hemafast.preparation import schema
from hemafast.preparation.plan import Plan
from hemafast.preparation.sources.gather import LOST
from hemafast.preparation.sources.survey import PassedOver
from hemafast.preparation.split import ALL_SPLITS

TO_DRAW = "split to be drawn"
"""In place of a split, for images whose split nothing says."""
UNLISTED = "not in the split file"
_SPLIT_ORDER = (TO_DRAW, *ALL_SPLITS, UNLISTED)
_EXAMPLES = 3


def passed_by_kind(passed: Sequence[PassedOver]) -> dict[str, schema.PassedFiles]:
    """Files that are not taken by kind, the most frequent first, each with its number and some examples."""
    names: dict[str, list[str]] = defaultdict(list)
    for one in passed:
        names[one.kind].append(one.name)
    ordered = sorted(names, key=lambda kind: (-len(names[kind]), kind))
    return {
        kind: schema.PassedFiles(files=len(names[kind]), examples=tuple(sorted(names[kind])[:_EXAMPLES]))
        for kind in ordered
    }


def account_for(manifest: pd.DataFrame, passed: Sequence[PassedOver]) -> schema.Account:
    """The account of a source, from the manifest of its images and its other files."""
    splits = {split: len(schema.in_split(manifest, split)) for split in ALL_SPLITS}
    quarantined = Counter(image.kind for image in schema.quarantined(manifest))
    return schema.Account(
        found=len(manifest) + len(passed),
        **splits,
        quarantined=dict(sorted(quarantined.items())),
        passed_over=passed_by_kind(passed),
    )


def plan_summary(plan: Plan) -> dict[str, Any]:
    """What would be taken from a source, as plain data: domains, splits, classes, scales, and what is passed over."""
    domains: dict[str, Any] = {}
    rest = UNLISTED if plan.settings["split_file"] else TO_DRAW
    for name, domain in plan.domains.items():
        splits: dict[str, Counter[str]] = defaultdict(Counter)
        for member in (member for member in plan.members if member.domain == name):
            splits[member.split or rest][member.label] += 1
        domains[name] = {
            "archive": domain.archive,
            "drawn": domain.drawn,
            "um_per_pixel": plan.um_per_pixel[name],
            "scale": plan.scale_sources[name],
            "images": sum(map(Counter.total, splits.values())),
            "splits": {split: dict(sorted(splits[split].items())) for split in sorted(splits, key=_SPLIT_ORDER.index)},
        }
    passed = {kind: files.model_dump(mode="json") for kind, files in passed_by_kind(plan.passed).items()}
    found = plan.images + len(plan.passed)
    return {"found": found, "images": plan.images, "domains": domains, "passed_over": passed, "notes": list(plan.notes)}


def refuse_lost(passed: Sequence[PassedOver]) -> None:
    """For --strict: raise LossError if an image is passed over that nobody asked to leave out."""
    lost = [one for one in passed if one.kind in LOST]
    if lost:
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(one.kind for one in lost).items())
        raise LossError(
            f"Images would be lost: {kinds}: {name_some([one.name for one in lost], _EXAMPLES)}.",
            "Put them into class folders or into the table of labels, or leave out --strict.",
        )
