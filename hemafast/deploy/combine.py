"""Make one model of several runs, or of the checkpoints of one, and write it as a run folder of its own.

Members and weights are chosen on the calibration half of the validation images, where temperatures are fitted too. The
gain that is reported is that on the other half.
"""

from __future__ import annotations

import json
import logging
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hemafast.config import Device, TrainConfig, to_json
from hemafast.data.dataset import Dataset, open_dataset
from hemafast.data.loader import eval_loader
from hemafast.data.samples import Samples
from hemafast.deploy.choices import Combining
from hemafast.deploy.engines import rates_of
from hemafast.deploy.members import Source, open_sources
from hemafast.deploy.soup import mean_of_weights, reestimate_norms
from hemafast.deploy.weigh import Labels, Opinions, best_members, fit_weights, score_of, worth_their_cost
from hemafast.engine.checkpoint import Combined, ModelCard, ensemble_of, save_best
from hemafast.engine.learner import build_eval_step
from hemafast.engine.plan import machine_and_graph
from hemafast.engine.step import Totals
from hemafast.engine.validate import validate
from hemafast.ensemble import Ensemble
from hemafast.errors import HemafastError, name_some
from hemafast.evaluate.compared import compare
from hemafast.evaluate.evaluate import as_seen, calibration_part
from hemafast.files import write_text
from hemafast.model import Classifier, Network
from hemafast.preparation.split import TRAIN, VAL
from hemafast.progress import SILENT, Progress, stage
from hemafast.run_folder import BEST, COMMAND, CONFIG, ENSEMBLE, MACHINE, filling_run_folder
from hemafast.words import counted

SCHEMA = 1
"""Of ENSEMBLE."""

logger = logging.getLogger("hemafast")


@dataclass(frozen=True, slots=True)
class Made:
    """An ensemble, or a soup, as a run folder."""

    folder: Path
    result: dict[str, Any]
    """The content of ENSEMBLE."""

    @property
    def scored(self) -> bool:
        """Whether validation images are held out for all members, so that `evaluate` can score it on them."""
        return self.result["scores"] is not None

    def lines(self) -> list[str]:
        """Members, gain and cost, in words."""
        shown = [f"{one['weight']:.2f}  {one['run']} (epoch {one['epoch']})" for one in self.result["members"]]
        left = [f"left out  {run}" for run in self.result["left_out"]]
        chosen = self.result["fitted_on"]
        said = [f"chosen on {counted(chosen, 'validation image')}, the calibration half"] if chosen else []
        return [*shown, *left, *said, self.result["verdict"], f"run folder  {self.folder}"]


def combine_runs(
    runs: Sequence[Path],
    *,
    method: Combining = "mean",
    max_cost: float | None = None,
    output: Path = TrainConfig.output,
    device: Device = "auto",
    progress: Progress = SILENT,
) -> Made:
    """Make one model of runs, and write it as a run of its own. The runs stay as they are.

    Args:
        runs: run folders; one for snapshots.
        method: how to combine them.
        max_cost: choose the members whose mean is best among those that cost at most this many times the best run.
        output: folder in which the run folder is made.
        device: where the networks run meanwhile, and where their cost is measured.
        progress: listens to every stage.

    Returns:
        The folder, and what was measured.

    Raises:
        HemafastError: a run has no model, runs do not fit together, their data set is not there, or no images are held
            out that the method needs; nothing is written.
    """
    if method == "soup" and max_cost is not None:
        raise HemafastError(
            f"A soup costs as much as one network, whatever max_cost = {max_cost} says.", "Leave out --max-cost."
        )
    sources = open_sources(runs, method)
    shared = Shared.of(sources, device)
    if not shared.chooses.any() and (method == "fitted" or max_cost is not None):
        raise HemafastError(
            f"No validation image is held out for all of {name_some([*map(str, runs)], 3)}, to choose weights or "
            "members on.",
            "Leave out --method fitted and --max-cost.",
        )
    with stage(progress, "asking the members"):
        asked = _ask(sources, shared)
    soup = method == "soup"
    made = _soup(sources, shared, asked) if soup else _ensemble(sources, shared, asked, method, max_cost)
    command = " ".join(["hemafast ensemble", shlex.join(map(str, runs)), *_options(method, max_cost)])
    result = _told(asked, made, shared, method) | {"command": command}
    return Made(_write(sources[0], shared, made, output, result), result)


def _options(method: Combining, max_cost: float | None) -> list[str]:
    return [
        *([] if method == "mean" else ["--method", method]),
        *([] if max_cost is None else ["--max-cost", f"{max_cost:g}x"]),
    ]


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """What all members share: the data that they were trained on, and how images of it are read."""

    dataset: Dataset
    config: TrainConfig
    """Of the first run, at the largest image size of all."""
    card: ModelCard
    """Of the ensemble, with equal weights."""
    device: Device
    held_out: Samples | None
    """Validation images; None if a member was trained on some of them."""
    chooses: np.ndarray[Any, np.dtype[np.bool_]]
    """(held out,): those that members and weights are chosen on."""

    @staticmethod
    def of(sources: Sequence[Source], device: Device) -> Shared:
        """Open the data set. Raises HemafastError if it is gone or has changed."""
        first = sources[0]
        dataset = replace(open_dataset(first.config.data), fold=first.config.fold)
        if dataset.info.fingerprint != first.card.data_fingerprint:
            problem = f"{dataset.folder} is not the data that {first.run} was trained with (its fingerprint differs)."
            raise HemafastError(problem, "Prepare the same archives with the same settings again.")
        card = card_of(sources, [1 / len(sources)] * len(sources))
        config = replace(first.config, image_size=card.image_size, growing_from=())
        folds = card.combined is not None and card.combined.folds
        held_out = None if folds else dataset.samples(VAL, card.image_size)
        chooses = np.zeros(0, dtype=bool) if folds else calibration_part(dataset, card)
        return Shared(dataset, config, card, device, held_out, chooses)


def card_of(sources: Sequence[Source], weights: Sequence[float], **more: Any) -> ModelCard:
    """The card of an ensemble; `more` as `Combined` has it."""
    cards = [source.card for source in sources]
    largest = max(cards, key=lambda card: card.image_size)
    names = [card.backbone for card in cards]
    kinds = [f"{names.count(name)} x {name}" for name in dict.fromkeys(names)]
    members = tuple(source.as_member(cards[0].classes, weight) for source, weight in zip(sources, weights, strict=True))
    runs = tuple(dict.fromkeys(member.run for member in members))
    combined = Combined(**{"method": "mean", "runs": runs, "members": members} | more)
    return replace(
        largest,
        backbone=" + ".join(kinds),
        classes=cards[0].classes,
        domains=tuple(dict.fromkeys(name for card in cards for name in card.domains)),
        epoch=max(card.epoch for card in cards),
        quarter_turns=all(source.network.quarter_turns for source in sources),
        calibration=None,
        adapted=None,
        home=None,
        combined=combined,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """What the members answer, and what they cost."""

    sources: Sequence[Source]
    opinions: Opinions | None
    """(members, images, classes) of the held-out images; None without any."""
    labels: Labels
    costs: list[float]
    """Seconds per image: of the processor on a CPU, else of the clock."""


class _Listening(nn.Module):
    """An ensemble that notes what each member says on the way."""

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.ensemble = ensemble
        self.opinions: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        places = range(len(self.ensemble.members))
        opinions = torch.stack([self.ensemble.opinion(place, images)[0] for place in places])
        self.opinions.append(opinions.cpu())
        return opinions.mean(0).log()


def _ask(sources: Sequence[Source], shared: Shared) -> Asked:
    ensemble = ensemble_of([source.network for source in sources], shared.card).eval()
    samples = shared.dataset.samples(TRAIN, shared.card.image_size) if shared.held_out is None else shared.held_out
    machine, graph = machine_and_graph(as_seen(shared.config, shared.card, samples), shared.device, samples)
    listening = _Listening(ensemble)
    step = build_eval_step(ensemble, machine, listening)
    costs = _costs(ensemble, sources, machine.device)
    if shared.held_out is None:
        return Asked(sources, None, np.zeros(0, np.int64), costs)
    totals = Totals(len(shared.card.classes), machine.device)
    validate(ensemble, step, eval_loader(samples, shape=graph), samples, totals)
    opinions = torch.cat(listening.opinions, dim=1).numpy()
    return Asked(sources, opinions, samples.labels, costs)


def _costs(ensemble: Ensemble, sources: Sequence[Source], device: str) -> list[float]:
    """Seconds per image of each member; networks of one kind cost the same, and are measured together."""
    runs = {str(place): _asker(ensemble, place) for place in range(len(sources))}
    rates, _ = rates_of(runs, ensemble.image_size, clock_of(device), device)
    kinds = [(one.card.backbone, one.card.image_size, one.network.quarter_turns) for one in sources]
    seconds = [1 / rates[str(place)] for place in range(len(sources))]
    return [float(np.median([mine for mine, own in zip(seconds, kinds, strict=True) if own == kind])) for kind in kinds]


def _asker(ensemble: Ensemble, place: int) -> Callable[[Tensor], Tensor]:
    @torch.inference_mode()
    def ask(images: Tensor) -> Tensor:
        return ensemble.opinion(place, images)[0]

    return ask


def clock_of(device: str) -> Callable[[], float]:
    """Seconds of the processor, which other programs do not change; on a GPU those until all work is done."""
    if device == "cpu":
        return time.process_time

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return clock


@dataclass(frozen=True, slots=True, eq=False)
class _New:
    """The new model."""

    network: Network
    card: ModelCard
    places: tuple[int, ...]
    """Of its members among the sources."""
    weights: tuple[float, ...]
    answers: Any
    """(held out, classes): its probabilities; None without held-out images."""
    cost: float


def _ensemble(
    sources: Sequence[Source], shared: Shared, asked: Asked, method: Combining, max_cost: float | None
) -> _New:
    places = tuple(range(len(sources)))
    fitted_on = 0
    labels, opinions = asked.labels[shared.chooses], None
    if asked.opinions is not None:
        opinions = asked.opinions[:, shared.chooses]
    if max_cost is not None and opinions is not None:
        best = asked.costs[_best_place(opinions, labels)]
        places = best_members(opinions, labels, asked.costs, max_cost * best)
        fitted_on = len(labels)
    weights = np.full(len(places), 1 / len(places))
    if method == "fitted" and opinions is not None:
        found, weights = worth_their_cost(fit_weights(opinions[list(places)], labels))
        places, fitted_on = tuple(places[place] for place in found), len(labels)
    chosen = [sources[place] for place in places]
    card = card_of(chosen, weights.tolist(), method=method, fitted_on=fitted_on)
    network = ensemble_of([one.network for one in chosen], card)
    answers = None
    if asked.opinions is not None:
        answers = np.tensordot(weights, asked.opinions[list(places)], axes=1)
    cost = sum(asked.costs[place] for place in places)
    return _New(network, card, places, tuple(weights.tolist()), answers, cost)


def _soup(sources: Sequence[Source], shared: Shared, asked: Asked) -> _New:
    first = sources[0]
    soup = mean_of_weights([source.network for source in sources])
    soup.freeze(stages=first.config.freeze_stages, norm=first.config.freeze_norm or first.config.probe > 0)
    samples = shared.dataset.samples(TRAIN, first.card.image_size)
    machine, graph = machine_and_graph(as_seen(shared.config, first.card, samples), shared.device, samples)
    soup.to(machine.device)
    batches: Iterator[Tensor] = (batch.images for batch in eval_loader(samples, shape=graph).epoch(0))
    if norms := reestimate_norms(soup, batches):
        images = counted(len(samples), "training image")
        logger.info("%s measured anew on %s", counted(norms, "batch norm"), images)
    combined = Combined("soup", tuple(str(source.run.absolute()) for source in sources))
    card = replace(first.card, calibration=None, epoch=max(one.card.epoch for one in sources), combined=combined)
    answers = _answers_of(soup, card, shared)
    share = 1 / len(sources)
    return _New(soup, card, tuple(range(len(sources))), (share,) * len(sources), answers, asked.costs[0])


def _answers_of(network: Classifier, card: ModelCard, shared: Shared) -> Any:
    assert shared.held_out is not None  # seeds of one recipe have one fold
    machine, graph = machine_and_graph(as_seen(shared.config, card, shared.held_out), shared.device, shared.held_out)
    step, totals = build_eval_step(network, machine), Totals(len(card.classes), machine.device)
    return validate(network, step, eval_loader(shared.held_out, shape=graph), shared.held_out, totals).probabilities


def _best_place(opinions: Opinions, labels: Labels) -> int:
    return int(np.argmax([score_of(one, labels) for one in opinions]))


def _told(asked: Asked, made: _New, shared: Shared, method: Combining) -> dict[str, Any]:
    """The content of ENSEMBLE: members, cost, and scores on the half of the held-out images that chose nothing."""
    reported = ~shared.chooses
    opinions, labels = asked.opinions, asked.labels[reported]
    singles = [None] * len(asked.sources) if opinions is None else [score_of(one[reported], labels) for one in opinions]
    best = 0 if opinions is None else _best_place(opinions[:, shared.chooses], asked.labels[shared.chooses])
    scores = None
    if opinions is not None and reported.any():
        scores = compare(labels, opinions[best, reported], made.answers[reported], shared.card.classes)
    members = [
        {
            "run": str(asked.sources[place].run.absolute()),
            "epoch": asked.sources[place].card.epoch,
            "weight": weight,
            "macro_f1": singles[place],
            "images_per_second": 1 / asked.costs[place],
        }
        for place, weight in zip(made.places, made.weights, strict=True)
    ]
    left_out = [str(one.run.absolute()) for place, one in enumerate(asked.sources) if place not in made.places]
    told = {
        "schema": SCHEMA,
        "method": method,
        "members": members,
        "left_out": left_out,
        "fitted_on": made.card.combined.fitted_on if made.card.combined else 0,
        "images": int(reported.sum()),
        "best_run": str(asked.sources[best].run.absolute()),
        "cost": made.cost / asked.costs[best],
        "images_per_second": 1 / made.cost,
        "scores": scores,
    }
    return told | {"verdict": verdict(told)}


def verdict(told: dict[str, Any]) -> str:
    """Gain beside cost, in words."""
    cost = f"{told['images_per_second']:,.0f} images/s, {told['cost']:.2f} times the cost of one run"
    if told["scores"] is None:
        return f"{cost}; no images are held out for all members, so that the gain is not known"
    before, after = (told["scores"][name]["macro_f1"] for name in ("before", "after"))
    low, high = told["scores"]["difference"]["ci95"]
    chance = "; the interval includes 0: it may be chance" if low <= 0 <= high else ""
    gain = f"{after - before:+.3f} (95 % interval {low:+.3f} to {high:+.3f}{chance})"
    images = counted(told["images"], "validation image")
    return f"macro-F1 {after:.3f}, best run {before:.3f} on {images} that chose nothing: {gain}; {cost}"


def _write(first: Source, shared: Shared, made: _New, output: Path, result: dict[str, Any]) -> Path:
    """The run folder, completely or not at all."""
    config = replace(shared.config, image_size=made.card.image_size)
    kind = "soup" if result["method"] == "soup" else f"ensemble-of-{len(made.places)}"
    made.network.cpu()
    with filling_run_folder(replace(config, output=output), kind) as folder:
        if (first.run / MACHINE).is_file():
            shutil.copyfile(first.run / MACHINE, folder / MACHINE)
        write_text(folder / CONFIG, to_json(config))
        write_text(folder / COMMAND, result["command"] + "\n")
        write_text(folder / ENSEMBLE, json.dumps(result, indent=2, allow_nan=False) + "\n")
        save_best(folder / BEST, made.network, made.card)
    return folder
