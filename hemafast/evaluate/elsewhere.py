"""What a run scores at home and in other laboratories, in one line, from the small files of its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hemafast.errors import HemafastError, name_some
from hemafast.preparation.split import VAL, WORDS
from hemafast.recorded import CrossDomain, read_recorded
from hemafast.run_folder import CROSSDOMAIN, EVALUATIONS, read_metrics
from hemafast.words import counted

_SHOWN = 6  # other laboratories that the line names

Metrics = Mapping[str, Any]


def home_and_elsewhere(run: Path) -> str:
    """One line: macro-F1 with its interval in the laboratories that a run was trained on, and in others.

    Others are the domains of its own data that it was not trained on, and those of other data that it was evaluated on.
    Where there are none: what `hemafast crossdomain` found by leaving out each domain of the same data in turn.

    Args:
        run: a run folder.

    Returns:
        The line, as "at home: Acevedo_20 0.893 (0.868 to 0.917; ...); elsewhere: not known: one domain". A score that
        nobody measured is "not known".
    """
    try:
        own = read_metrics(run)
    except HemafastError:
        return "at home: not known: not evaluated; elsewhere: not known"
    trained = own["model"]["domains"]
    there = {name: scores for name, scores in own["domains"].items() if name in trained}
    whole = {" and ".join(there): own["pooled"]} if len(there) == len(own["domains"]) else there
    home = [_told(name, scores) for name, scores in whole.items()]
    others = [_told(name, scores) for name, scores in own["domains"].items() if name not in trained]
    others += _evaluated(run, own)
    elsewhere = name_some(others, _SHOWN) if others else _left_out(run, own)
    return f"at home: {', '.join(home)}{_apart(own, [*there])}; elsewhere: {elsewhere}"


def note_on_elsewhere(domains: Sequence[str]) -> str:
    """What scores of several runs on images of `domains` say of other laboratories, without a full stop."""
    known = "not known: one domain" if len(domains) == 1 else "not known: `hemafast crossdomain` measures it"
    return f"Scores are at home, in {' and '.join(domains)}. In other laboratories: {known}"


def _told(name: str, scores: Metrics, more: str = "") -> str:
    value, ends = scores["macro_f1"], scores["ci95"]["macro_f1"]
    if value is None:
        return f"{name} none"
    interval = "" if ends[0] is None else f"{ends[0]:.3f} to {ends[1]:.3f}; "
    images = f"{scores['images']:,} {'image' if scores['images'] == 1 else 'images'}"
    return f"{name} {value:.3f} ({interval}{images}, {counted(scores['classes'], 'class')}{more})"


def _apart(own: Metrics, domains: list[str]) -> str:
    """Whether patients were kept apart; nothing where older scores do not say."""
    grouped = own["data"].get("grouped")
    if grouped is None or not domains:
        return ""
    divided = [name for name in domains if name not in grouped]
    if not divided:
        return ", groups such as patients kept apart"
    return ", split by image, not by patient" + (f" in {' and '.join(divided)}" if len(divided) < len(domains) else "")


def _evaluated(run: Path, own: Metrics) -> list[str]:
    """Scores of the same weights on other data, of laboratories that they were not trained on."""
    told = []
    for folder in sorted((run / EVALUATIONS).glob("*")):
        try:
            metrics = read_metrics(folder)
        except HemafastError:
            continue
        same = all(metrics["model"][name] == own["model"][name] for name in ("epoch", "data_fingerprint"))
        if not same or metrics["data"]["fingerprint"] == own["data"]["fingerprint"]:
            continue
        merged = ", classes merged" if metrics.get("folding", {}).get("class_map") else ""
        test = "" if metrics["split"] == VAL else f", {WORDS[metrics['split']]} images"
        told += [
            _told(name, scores, test + merged)
            for name, scores in metrics["domains"].items()
            if name not in own["model"]["domains"]
        ]
    return told


def _left_out(run: Path, own: Metrics) -> str:
    """What leaving out one domain at a time says about laboratories that nobody has seen."""
    if len(own["data"]["domains"]) == 1:
        return "not known: one domain"
    if len(domains := own["model"]["domains"]) < len(own["data"]["domains"]):
        return "not known: the other domains have no validation images"
    for file in (run.parent.parent / CROSSDOMAIN, run.parent / Path(CROSSDOMAIN).stem / CROSSDOMAIN):
        if found := _read_left_out(file, own):
            low, high = found["ci95"]
            how = f"each tested with a model of the others, preset {found['preset']}{found['merged']}"
            mean = f"mean of {counted(len(found['domains']), 'domain')}"
            return f"{found['value']:.3f} ({low:.3f} to {high:.3f}), {mean}, {how}"
    what = "its only domain" if len(domains) == 1 else f"all {len(domains)} domains"
    return f"not known: trained on {what}; `hemafast crossdomain` measures it"


def _read_left_out(file: Path, own: Metrics) -> dict[str, Any] | None:
    """The mean of `hemafast crossdomain` over the domains of this data, if it is there."""
    try:
        result = read_recorded(file, CrossDomain)
        merged = ", classes merged" if result["folding"]["class_map"] else ""
        left_out: dict[str, Any] = result["left_out"] | {"preset": result["settings"]["preset"], "merged": merged}
        fits = result["data"]["fingerprint"] == own["data"]["fingerprint"]
        return left_out if fits and set(own["model"]["domains"]) <= set(left_out["domains"]) else None
    except (OSError, ValueError):
        return None
