"""The model card of an exported model as Markdown: data, classes, scores, input, limits."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from hemafast import __version__
from hemafast.data.dataset import Dataset
from hemafast.data.geometry import window_side
from hemafast.deploy.formats import Exported
from hemafast.engine.checkpoint import DRAWN_WARNING, ModelCard
from hemafast.errors import HemafastError
from hemafast.evaluate.calibration import SENSITIVITY
from hemafast.evaluate.conformal import SET_COVERAGE
from hemafast.evaluate.elsewhere import home_and_elsewhere
from hemafast.metrics import with_pooled
from hemafast.model import Network
from hemafast.pages import environment
from hemafast.pixel_constants import LEAST_SPREAD, LEVELS, SPREADS
from hemafast.preparation.schema import DomainInfo, divided_groups, grouped_domains
from hemafast.preparation.split import TEST, TRAIN
from hemafast.run_folder import METRICS, read_metrics
from hemafast.words import counted

Counts = dict[str, dict[str, int]]
"""Images by domain and class."""

FEW = 50
"""Classes with fewer training images are listed among the limits."""

# Characters that Markdown interprets; not underscores within a word, nor lone colons.
_MARKUP = re.compile(r"[\\`*\[\]<>&|~#$@{}]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.", re.IGNORECASE)

logger = logging.getLogger("hemafast")


def model_card(exported: Exported, model: Network, card: ModelCard, folder: Path, dataset: Dataset | None) -> str:
    """The card as Markdown.

    `folder` is that of the run; its metrics.json is used if it is about this model. Without `dataset`, the training
    data, the training images are not counted.
    """
    metrics = metrics_of(folder, card)
    training = {} if dataset is None else training_counts(dataset)
    totals = {label: sum(counts[label] for counts in training.values()) for label in card.classes if training}
    templates = environment(finalize=_as_text, keep_trailing_newline=True)  # escaping keeps the Markup of `_as_text`
    templates.filters |= {"score": _score, "listed": _and}
    return templates.get_template("deploy/model_card.md.j2").render(
        exported=exported,
        model=model,
        card=card,
        version=__version__,
        drawn_warning=DRAWN_WARNING,
        training=training,
        sources={} if dataset is None else {name: _source(info) for name, info in dataset.info.domains.items()},
        notes=() if dataset is None else dataset.info.notes,
        metrics=metrics,
        sets=with_pooled(metrics["domains"], metrics["pooled"]) if metrics else {},
        levels=LEVELS,
        spreads=SPREADS,
        least_spread=LEAST_SPREAD,
        window=window_side(card.view.packed_size),
        sensitivity=SENSITIVITY,
        set_coverage=SET_COVERAGE,
        held_out=held_out_counts(dataset),
        grouped=dataset is not None and _has_groups(dataset),
        told=home_and_elsewhere(folder) if metrics else None,
        divided=0 if dataset is None else divided_groups(dataset.files.columns("verdict", "split", "group")),
        few=[f"{label} ({count})" for label, count in totals.items() if count < FEW],
        few_images=FEW,
    )


def _source(domain: DomainInfo) -> str:
    """How the scale of a domain is known; empty in data sets of older versions, which did not say."""
    scale = domain.scale
    if scale is None or scale.source != "estimated" or scale.estimate is None:
        return scale.source if scale else ""
    found = scale.estimate
    return f"estimated from {counted(found.nuclei, 'nucleus')}: {found.low:.3g} to {found.high:.3g}"


def training_counts(dataset: Dataset) -> Counts:
    """Training images of `dataset` by domain and class, zeros included."""
    images = dataset.images(TRAIN)
    table = pd.crosstab(images["domain"], images["label"]).reindex(columns=dataset.info.classes, fill_value=0)
    return {str(domain): {str(name): int(count) for name, count in row.items()} for domain, row in table.iterrows()}


def held_out_counts(dataset: Dataset | None) -> dict[str, int]:
    """Test images by domain; empty without any."""
    counts = {} if dataset is None else dataset.info.counts.get(TEST, {})
    return {domain: sum(labels.values()) for domain, labels in counts.items()}


def _has_groups(dataset: Dataset) -> bool:
    """Whether patients or slides are known: images that show different pictures and yet belong together."""
    named = dataset.info.settings["groups"] or dataset.info.settings["group_pattern"]
    return bool(named or grouped_domains(dataset.files.columns("verdict", "domain", "group", "duplicate_group")))


def metrics_of(folder: Path, card: ModelCard) -> dict[str, Any] | None:
    """metrics.json, if it exists and is about the model of `card`."""
    if not (folder / METRICS).is_file():
        return None
    try:
        metrics = read_metrics(folder)
    except HemafastError as error:
        logger.warning("The model card has no scores: %s", error)
        return None
    plain = json.loads(json.dumps(asdict(replace(card, calibration=None))))
    if any(metrics["model"].get(name) != value for name, value in plain.items() if name != "calibration"):
        logger.warning("The model card has no scores: %s holds those of another model.", folder / METRICS)
        return None
    return metrics


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _score(scores: Mapping[str, Any], name: str) -> str:
    """A score and its interval, or "none"."""
    value, ends = scores[name], scores["ci95"].get(name)
    if value is None:
        return "none"
    low, high = ends or (None, None)
    return f"{value:.3f}" + (f" ({low:.3f} to {high:.3f})" if low is not None and high is not None else "")


def _as_text(value: Any) -> Any:
    """A value as inert Markdown text on one line, even if its text is hostile."""
    from markupsafe import Markup

    line = " ".join("".join(letter if letter.isprintable() else " " for letter in str(value)).split())
    return Markup(_MARKUP.sub(lambda found: f"&#{ord(found[0])};", line))
