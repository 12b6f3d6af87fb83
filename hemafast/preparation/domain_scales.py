"""The scale of each domain that nothing says, from its nuclei; and what is said about all scales."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import pandas as pd

from hemafast.preparation import schema
from hemafast.preparation.images.depth import Range, spread
from hemafast.preparation.images.image_checks import strict_decoders
from hemafast.preparation.plan import Plan, choose_windows, refuse_no_scale
from hemafast.preparation.ranges import contents_of, in_stored_order
from hemafast.preparation.scale import SAMPLE, Encoded, ScaleEstimate, estimate_encoded
from hemafast.preparation.sources.gather import Member
from hemafast.progress import SILENT, Progress, stage
from hemafast.words import counted

_COMPARED = 100  # images of a domain of known scale that are looked at, to notice a wrong one
_TO_DOUBT = 30  # nuclei that speak against a known scale, at least: fewer may be of one class
_SAME_SIZE = 1.05  # largest over smallest side in a domain; beyond it, some images were probably resampled


def measure_scales(
    plan: Plan, ranges: Mapping[str, Mapping[str, Range]], *, workers: int, progress: Progress = SILENT
) -> Plan:
    """The plan with the scales that are to be estimated, and the windows that follow from them.

    A sample of each domain is read a second time; `ranges` says what its values of more than 8 bits become. Domains
    that are unknown by wish are passed over. Raises HemafastError for a damaged archive, and for a domain without a
    scale if the settings need one.
    """
    samples = {name: _sample(plan, name) for name in plan.domains if plan.scale_sources[name] != "unknown"}
    estimates = {}
    total = sum(map(len, samples.values()))
    with stage(progress, "estimating scales", total), strict_decoders():
        for name, members in samples.items():
            estimates[name] = estimate_encoded(_encoded(members, ranges[name], plan, progress), workers)
    return _with_estimates(plan, estimates)


def _sample(plan: Plan, domain: str) -> Sequence[Member]:
    own = in_stored_order([member for member in plan.members if member.domain == domain])
    return spread(own, SAMPLE if plan.scale_sources[domain] == "estimated" else _COMPARED)


def _encoded(
    members: Sequence[Member], ranges: Mapping[str, Range], plan: Plan, progress: Progress
) -> Iterator[Encoded]:
    for member, data in zip(members, contents_of(members), strict=True):
        yield Encoded(data, member.file, ranges, plan.settings["min_side"])
        progress.advance()


def _with_estimates(plan: Plan, estimates: Mapping[str, ScaleEstimate]) -> Plan:
    field_of_view = plan.settings["field_of_view"]
    used = {name: estimate for name, estimate in estimates.items() if plan.scale_sources[name] == "estimated"}
    for name, estimate in used.items():
        if estimate.um_per_pixel is None:
            refuse_no_scale(name, field_of_view, f": it {estimate.words()}")
    scales = {name: used[name].um_per_pixel if name in used else scale for name, scale in plan.um_per_pixel.items()}
    return replace(
        plan,
        um_per_pixel=scales,
        estimates=estimates,
        windows=choose_windows(scales, field_of_view),
        windows_by_side={name: choose_windows(one.by_side, field_of_view) for name, one in used.items()},
    )


def scale_notes(manifest: pd.DataFrame, plan: Plan) -> Iterator[str]:
    """Notes about scales, and about domains whose cells may appear larger or smaller than those of the others."""
    for name, images in schema.accepted(manifest).groupby("domain"):
        domain = str(name)
        yield from (f"{domain}: {note}" for note in (*_source_notes(domain, plan), *_size_notes(domain, images, plan)))


def _source_notes(domain: str, plan: Plan) -> Iterator[str]:
    """How the scale of a domain is known."""
    scale, source, estimate = plan.um_per_pixel[domain], plan.scale_sources[domain], plan.estimates.get(domain)
    option = f"--um-per-pixel {shlex.quote(domain)}"
    if estimate is None:
        yield "um/px unknown, as asked for; images are kept whole"
    elif scale is None:
        yield f"um/px unknown, images are kept whole; it {estimate.words()}; give it with {option}=NUMBER"
    elif source == "estimated":
        yield f"{estimate.words()}; give the true one with {option}=NUMBER, or keep images whole with {option}=unknown"
    elif estimate.nuclei >= _TO_DOUBT and not estimate.holds(scale):
        yield f"{scale:g} um/px ({source}), but its nuclei say {estimate.words()}; check {option}"


def _size_notes(domain: str, images: pd.DataFrame, plan: Plan) -> Iterator[str]:
    """Where images of one domain differ in size."""
    window, own = plan.windows.get(domain), plan.windows_by_side.get(domain)
    if window is None:
        return
    sides = images[["width", "height"]].min(axis=1)
    if small := int((images["window"] > sides).sum()):
        yield (
            f"{counted(small, 'image is', 'images are')} smaller than the field of view of {window} px; "
            "their edges are repeated to fill it"
        )
    if tiny := int((images["window"] < [plan.window(domain, side) for side in sides]).sum()):
        yield (
            f"{counted(tiny, 'image is', 'images are')} too small for a cell at this scale, and kept whole; "
            "check --um-per-pixel"
        )
    if own:
        scales = plan.estimates[domain].by_side
        listed = ", ".join(f"{side} px: {scales[side]:.3g} um/px" for side in own)
        yield f"sizes differ in scale, as if some were resampled, and each is cut by its own ({listed})"
    elif sides.max() > _SAME_SIZE * sides.min():
        yield (
            f"images of {sides.min()} to {sides.max()} px; {plan.um_per_pixel[domain]} um/px "
            "is used for all, which is wrong for images that were resampled"
        )
