"""Open the networks that `hemafast ensemble` makes one model of, and refuse by name what does not fit together."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hemafast.config import FREE, TrainConfig, option_of, to_plain
from hemafast.deploy.choices import Combining
from hemafast.engine.checkpoint import Member, ModelCard, load_best, load_kept
from hemafast.ensemble import MOST_MEMBERS, single
from hemafast.errors import HemafastError, name_some
from hemafast.model import Classifier
from hemafast.run_folder import BEST, LAST, is_run, read_config

_ALONE = "`hemafast predict IMAGES --runs RUN RUN` averages the answers of runs without making one model of them."


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A network that becomes a member."""

    run: Path
    config: TrainConfig
    network: Classifier
    card: ModelCard

    def as_member(self, classes: Sequence[str], weight: float) -> Member:
        """Its entry in the card of an ensemble of these classes."""
        network, card = self.network, self.card
        mean, std = ((float(one[0]), float(one[1]), float(one[2])) for one in (network.mean, network.std))
        return Member(
            run=str(self.run.absolute()),
            epoch=card.epoch,
            backbone=card.backbone,
            image_size=card.image_size,
            mean=mean,
            std=std,
            standardize=network.standardize,
            quarter_turns=network.quarter_turns,
            temperature=card.temperature,
            weight=weight,
            order=tuple(card.places_of(classes)),
            fold=self.config.fold,
        )


def open_sources(runs: Sequence[Path], method: Combining) -> list[Source]:
    """The networks to combine: the best of each run, or the checkpoints of one.

    Raises HemafastError for what is no run, too few or too many, or does not fit together.
    """
    _refuse_count(runs, method)
    sources = _snapshots(runs[0]) if method == "snapshots" else [_open(run) for run in runs]
    if len(sources) > MOST_MEMBERS:
        problem = f"{len(sources)} members are too many: {MOST_MEMBERS} at most."
        raise HemafastError(problem, "Name the best of them.")
    for other in sources[1:]:
        _refuse_strangers(sources[0], other)
        if method == "soup":
            _refuse_other_recipe(sources[0], other)
    return sources


def _refuse_count(runs: Sequence[Path], method: Combining) -> None:
    if method == "snapshots" and len(runs) != 1:
        raise HemafastError(
            f"Snapshots are the checkpoints of one run, and {len(runs)} are named.",
            "Name one run, or choose another --method.",
        )
    if method != "snapshots" and len(runs) < 2:
        remedy = "Name several runs, or take the checkpoints of one with --method snapshots."
        raise HemafastError(f"An ensemble takes two runs at least, and {len(runs)} is named.", remedy)
    found = [run.resolve() for run in runs]
    twice = next((run for place, run in enumerate(runs) if found[place] in found[:place]), None)
    if twice is not None:
        raise HemafastError(f"{twice} is named twice.", "Name each run once.")


def _open(run: Path) -> Source:
    if not is_run(run):
        raise HemafastError(f"{run} is not a run folder.", "Name folders that `hemafast train` made.")
    network, card = load_best(run / BEST)
    return Source(run, read_config(run), single(network, "a member of another ensemble"), card)


def _snapshots(run: Path) -> list[Source]:
    """The best network and those of the checkpoints that are kept, one for each epoch, the oldest first."""
    best = _open(run)
    best = replace(best, card=replace(best.card, calibration=None))  # it was fitted for one of them alone
    found = {best.card.epoch: best}
    for state in load_kept(run / LAST):
        epoch = int(state["progress"]["epochs_done"])
        if epoch in found or not epoch:
            continue
        network = copy.deepcopy(best.network)
        try:
            network.load_state_dict(state["ema"] or state["model"])
        except (RuntimeError, TypeError, AttributeError) as error:
            raise HemafastError(f"A checkpoint of {run} holds another network.", "Name another run.") from error
        found[epoch] = replace(best, network=network, card=replace(best.card, epoch=epoch))
    if len(found) < 2:
        problem = f"{run} keeps the weights of one epoch only (epoch {best.card.epoch})."
        remedy = "Name several probes." if best.config.probe else "Train with more checkpoints, such as --keep 5."
        raise HemafastError(problem, remedy)
    return [found[epoch] for epoch in sorted(found)]


def _refuse_strangers(first: Source, other: Source) -> None:
    """Classes in another order, image sizes and normalisations are mapped; all else must be the same."""
    ours, theirs = set(first.card.classes), set(other.card.classes)
    if ours != theirs:
        raise HemafastError(
            f"{first.run} and {other.run} have other classes: {name_some(sorted(ours ^ theirs), 4)} "
            "only in one of them.",
            "Train them on data with the same classes.",
        )
    if first.card.data_fingerprint != other.card.data_fingerprint:
        raise HemafastError(
            f"{first.run} and {other.run} were trained on other data, so that no image is held out for both.", _ALONE
        )
    if first.card.view.field_of_view != other.card.view.field_of_view:
        raise HemafastError(f"{first.run} and {other.run} see other parts of an image.", _ALONE)


def _refuse_other_recipe(first: Source, other: Source) -> None:
    """The mean of weights means something only where training began and went on alike."""
    ours, theirs = to_plain(first.config), to_plain(other.config)
    learned = [name for name in ours if name != "seed" and option_of(TrainConfig, name).on_resume != FREE]
    changed = [name for name in learned if ours[name] != theirs[name]]
    if first.card.started_from != other.card.started_from:
        changed.append("started_from")
    if first.card.started_from.startswith("RANDOM"):
        changed.append("random first weights")
    if first.card.image_size != other.card.image_size:
        changed.append("image size of the best epoch")
    if changed:
        problem = f"{first.run} and {other.run} are no seeds of one recipe: {name_some(changed, 4)}."
        raise HemafastError(problem, "Take --method mean.")
