"""Adapt the best model of a run to the images of another laboratory; the result is a run of its own."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hemafast.config import Device, TrainConfig, balanced_share
from hemafast.data.dataset import Dataset, open_dataset
from hemafast.deploy.inputs import Images
from hemafast.deploy.model import Model, open_model
from hemafast.engine.checkpoint import Adapted, Home, ModelCard, load_best
from hemafast.engine.home import home_of
from hemafast.engine.layout import avoid_wrong_gradients
from hemafast.ensemble import single
from hemafast.errors import HemafastError, name_some
from hemafast.evaluate.calibration import fit_temperature
from hemafast.evaluate.compared import compare
from hemafast.evaluate.likeness import judge
from hemafast.logistic import Layer, Matrix
from hemafast.model import Classifier, last_layer
from hemafast.preparation.schema import is_prepared
from hemafast.progress import SILENT, Progress, stage
from hemafast.run_folder import ADAPTATION_PAGE, BEST, is_run, read_config
from hemafast.transfer import steps
from hemafast.transfer.cells import Asked, Cells, read_cells, read_prepared_cells, refuse_own_images
from hemafast.transfer.choose import Candidate, answers_of, best_candidate, sample_of, table
from hemafast.transfer.classes import keep_classes, place_labels, read_map, refuse_dropped
from hemafast.transfer.head import Fitted, fit_head, with_new_classes
from hemafast.transfer.written import write_adapted
from hemafast.words import counted

SCHEMA = 1
"""Of ADAPTATION."""

_BATCH = 64
_FEWEST = 16  # images without labels that are worth learning from

logger = logging.getLogger("hemafast")


@dataclass(frozen=True, slots=True, eq=False)
class Parent:
    """The run that is adapted."""

    folder: Path
    config: TrainConfig
    opened: Model
    """The model as `predict` uses it."""
    network: Classifier
    """The same, its batch norms not fused."""
    classes: tuple[str, ...]
    """Those of the network that the new laboratory tells apart, in its order."""
    start: Classifier
    """The network with these classes only: what is adapted."""
    home: Home | None
    """What is known of its training images; None for a run of an earlier version whose data set is gone."""
    dataset: Dataset | None
    """What it was trained on; None if that is no longer there."""

    @property
    def card(self) -> ModelCard:
        """Of its best model."""
        return self.opened.card

    @property
    def shares(self) -> npt.NDArray[np.float64] | None:
        """Frequencies of `classes` that the network expects, (classes,); None if they are unknown."""
        if self.home is None:
            return None
        config = self.config
        tau = {"logit-adjusted": min(config.logit_tau, 1.0), "weighted": 1.0}.get(config.loss, 0.0)
        counts = np.array(self.home.counts)
        shares = steps.learned_shares(counts, balanced_share(config.sampler), tau)[self.card.places_of(self.classes)]
        return np.asarray(shares / shares.sum())

    @property
    def dropped_classes(self) -> tuple[str, ...]:
        """Classes of the network that the new laboratory does not tell apart."""
        return tuple(name for name in self.card.classes if name not in self.classes)


@dataclass(frozen=True, slots=True)
class Adaptation:
    """An adapted run."""

    folder: Path
    result: dict[str, Any]
    """The content of ADAPTATION: parent, images, labels, steps, scores, verdict."""

    def to_plain(self) -> dict[str, Any]:
        """As plain data, ready for JSON."""
        return {"run": str(self.folder), **self.result}

    def lines(self) -> list[str]:
        """What was done and whether it is better, in words."""
        done = [f"changed: {step}" for step in self.result["steps"]]
        if new := self.result["new_classes"]:
            other = f"if one is a class of the parent: --class-map {shlex.quote(f'{new[0]}=CLASS')}"
            done.append(f"new classes: {name_some(new, 6)} ({other})")
        page = self.folder / ADAPTATION_PAGE
        return [*done, self.result["verdict"], f"run folder  {self.folder}", f"report      {page}"]


def adapt_run(
    folder: Path,
    data: Images | Dataset,
    asked: Asked | None = None,
    *,
    class_map: Path | Mapping[str, str] | None = None,
    output: Path = TrainConfig.output,
    device: Device = "auto",
    progress: Progress = SILENT,
) -> Adaptation:
    """Adapt the best model of a run to other images, and write the result as a run of its own. The parent stays.

    Args:
        folder: run folder of the parent.
        data: images as `predict` takes them; or a prepared data set or its folder, of which the training rows are used.
        asked: labels of some of the images, patients, scale; None for images alone.
        class_map: new names of labels by their old ones, or a table of them.
        output: folder in which the run folder is made.
        device: where the model runs.
        progress: listens to every stage.

    Returns:
        What was done, what it changed, and where the new run is.

    Raises:
        HemafastError: `folder` holds no model that can be adapted, or images or labels do not fit it.
    """
    asked, mapped = asked or Asked(), read_map(class_map)
    parent = open_parent(folder, device, asked.classes)
    cells = gather_cells(parent, data, asked, mapped, progress)
    given, new = _placed(parent, cells, mapped) if asked.labels is not None else (np.full(len(cells), -1), ())
    chosen, judged = without_labels(parent, cells.pixels, progress)
    if asked.labels is None:
        made = Made(chosen.network, parent.classes, _steps_of(parent, chosen), None)
    else:
        made = _with_labels(parent, cells, given, new, chosen, progress)
    labels = int((given >= 0).sum())
    adapted = Adapted(str(parent.folder.absolute()), len(cells), labels, made.steps)
    card = replace(parent.card, classes=made.classes, calibration=None, adapted=adapted, home=None)
    result = _told(parent, data, cells, made, labels) | {"candidates": table(judged, chosen)}
    return Adaptation(write_adapted(parent.folder, parent.config, output, made.network, card, result), result)


def _placed(parent: Parent, cells: Cells, mapped: Mapping[str, str]) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """The class of each cell among those that are kept and new ones, and the names of the new ones."""
    refuse_own_images(cells, parent.dataset)
    places, new = place_labels(cells.labels, parent.card.classes, mapped)
    refuse_dropped(places, parent.card.classes, parent.classes)
    every, kept = (*parent.card.classes, *new), (*parent.classes, *new)
    place_of = {name: place for place, name in enumerate(kept)}
    moved = np.array([place_of.get(name, -1) for name in every] + [-1])  # the last one is for cells without a label
    return moved[places], new


def _told(parent: Parent, data: Images | Dataset, cells: Cells, made: Made, labels: int) -> dict[str, Any]:
    """What was done, as plain data."""
    return {
        "schema": SCHEMA,
        "parent": _described(parent),
        "data": named(data),
        "images": len(cells),
        "labels": labels,
        "new_classes": [name for name in made.classes if name not in parent.card.classes],
        "dropped_classes": [*parent.dropped_classes] if made.steps else [],
        "kept_parent": not made.steps,
        "steps": list(made.steps),
        "verdict": _verdict(parent, data, made, labels),
        "scores": made.scores,
        "predicted": _predicted(parent, made, cells.pixels),
        "command": command(parent, data),
    }


def _described(parent: Parent) -> dict[str, Any]:
    card = parent.card
    return {"folder": str(parent.folder.absolute()), "epoch": card.epoch, "data_fingerprint": card.data_fingerprint}


def named(data: Images | Dataset) -> str:
    """The data in a command line."""
    if isinstance(data, Dataset):
        return shlex.quote(str(data.folder))
    paths = [data] if isinstance(data, str | Path) else data
    if isinstance(paths, np.ndarray) or not all(isinstance(one, str | Path) for one in paths):
        return "IMAGES"
    return shlex.join(map(str, paths))


def command(parent: Parent, data: Images | Dataset) -> str:
    """The command line that adapts the parent to the data, without labels."""
    classes = f" --classes {shlex.quote(','.join(parent.classes))}" if parent.dropped_classes else ""
    return f"hemafast adapt {shlex.quote(str(parent.folder))} {named(data)}{classes}"


def _verdict(parent: Parent, data: Images | Dataset, made: Made, labels: int) -> str:
    """Whether the new run is better, in words."""
    if made.scores is None:
        changed = "Adapted" if made.steps else "Nothing is changed: the parent's weights are kept"
        more = f"`{command(parent, data)} --suggest 50`"
        few = f" Its {counted(labels, 'label is', 'labels are')} too few for cross-validation." if labels else ""
        return f"{changed}.{few} Whether it is better is not known without labels; label some: {more}"
    before, after = (made.scores[name]["macro_f1"] for name in ("before", "after"))
    low, high = made.scores["difference"]["ci95"]
    cells = f"{made.scores['cells']} labelled cells"
    if not made.steps:
        kept = "and no change raised it in cross-validation. The parent's weights are kept."
        return f"No better: macro-F1 {before:.3f} before adapting, on {cells}, {kept}"
    chance = " The interval includes 0: it may be chance." if low <= 0 <= high else ""
    gain = f"{after - before:+.3f} (95 % interval {low:+.3f} to {high:+.3f})"
    scored = f"on {cells}, each predicted without its own label (cross-validation)"
    return f"macro-F1 {before:.3f} before adapting, {after:.3f} after, {scored}: {gain}.{chance}"


def _predicted(parent: Parent, made: Made, pixels: Tensor) -> list[dict[str, Any]]:
    """How many cells are given each class before and after, of those that candidates are judged on."""
    some = sample_of(pixels)
    before = _counted(parent.network, parent.card.classes, some)
    after = _counted(made.network, made.classes, some)
    names = dict.fromkeys((*parent.card.classes, *made.classes))
    return [{"class": name, "before": before.get(name, 0), "after": after.get(name, 0)} for name in names]


def _counted(network: Classifier, classes: Sequence[str], pixels: Tensor) -> dict[str, int]:
    """How many of the images are given each class, zeros included."""
    answers = answers_of(network, pixels).argmax(1)
    return dict(zip(classes, answers.bincount(minlength=len(classes)).tolist(), strict=True))


def open_parent(folder: Path, device: Device = "auto", classes: Sequence[str] | None = None) -> Parent:
    """Open the run to adapt.

    Args:
        folder: its run folder.
        device: where the model runs.
        classes: those that the new laboratory tells apart; None for all.

    Raises:
        HemafastError: it is an export, a model without a run or an adapted run, or lacks one of the classes.
    """
    if not is_run(folder):
        raise HemafastError(
            f"{folder} is not a run folder: only a run can be adapted, not an exported graph or a file of weights.",
            "Name a folder that `hemafast train` made.",
        )
    config = read_config(folder)
    found, card = load_best(folder / BEST)
    network = single(found, "adapted")
    if card.adapted is not None:
        raise HemafastError(
            f"{folder} was itself adapted from {card.adapted.parent}.", "Adapt that run, with all images and labels."
        )
    kept = keep_classes(classes, card.classes)
    last_layer(network)
    opened = open_model(folder, device=device)
    network = network.eval().to(opened.machine.device).to(memory_format=torch.channels_last)
    start = steps.narrow(network, card.places_of(kept))
    dataset = _trained_on(config, card)
    home = card.home or _home_in(dataset, config, opened)
    return Parent(folder, config, opened, network, kept, start, home, dataset)


def _trained_on(config: TrainConfig, card: ModelCard) -> Dataset | None:
    try:
        dataset = open_dataset(config.data, config.fold, config.domains)
    except HemafastError as error:
        logger.debug("no data set: %s", error.problem)
        return None
    return dataset if dataset.info.fingerprint == card.data_fingerprint else None


def _home_in(dataset: Dataset | None, config: TrainConfig, opened: Model) -> Home | None:
    """What the card of a run of an earlier version does not say, from its data set; None if that is gone."""
    if dataset is None:
        logger.warning(
            "%s no longer holds the training set, and this run of an earlier version does not say its white point and "
            "class frequencies: adapting goes without them",
            config.data,
        )
        return None
    return home_of(dataset, opened.machine, opened.card.image_size, standardize=config.standardize)


def gather_cells(
    parent: Parent, data: Images | Dataset, asked: Asked, mapped: Mapping[str, str], progress: Progress
) -> Cells:
    """The new images, of a prepared data set or as `predict` takes them."""
    if isinstance(data, str | Path) and is_prepared(Path(data)):
        data = open_dataset(Path(data))
    if isinstance(data, Dataset):
        return read_prepared_cells(parent.opened, data, labelled=asked.labels is not None, progress=progress)
    return read_cells(parent.opened, data, asked, (*parent.card.classes, *mapped), progress)


def without_labels(parent: Parent, pixels: Tensor, progress: Progress) -> tuple[Candidate, list[Candidate]]:
    """The change that is worth making without labels, and all that were judged; the first is none."""
    if len(pixels) < _FEWEST:
        said = counted(len(pixels), "image is", "images are")
        logger.warning("%s too few to adapt to without labels: at least %d", said, _FEWEST)
        return (kept := Candidate(parent.start)), [kept]
    if not _is_unlike(parent.opened, pixels):
        logger.info("the images are like those of the training set: without labels, nothing is changed")
        return (kept := Candidate(parent.start)), [kept]
    machine = replace(parent.opened.machine, precision="fp32")  # in which norms learn
    avoid_wrong_gradients(parent.start, machine, parent.config)
    return best_candidate(parent.start, pixels, _home_white(parent), parent.shares, progress)


def _is_unlike(model: Model, pixels: Tensor) -> bool:
    """Whether images are unlike those of the training set; True where that is not known."""
    if model.likeness is None:
        return True
    parts = [model.answers(part)[1] for part in torch.split(sample_of(pixels), _BATCH)]
    return bool(judge(torch.cat(parts).cpu().numpy(), model.likeness.images)["unlike"])


def _home_white(parent: Parent) -> Tensor | None:
    """White point of the training images; None where it is unknown, or has no effect."""
    known = parent.home and parent.home.white_point
    return None if known is None else torch.tensor(known)


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """An adapted network and what is known of it."""

    network: Classifier
    classes: tuple[str, ...]
    steps: tuple[str, ...]
    """What was changed, in words."""
    scores: dict[str, Any] | None
    """Before and after on held-out labels; None without enough of them."""


def _steps_of(parent: Parent, chosen: Candidate) -> tuple[str, ...]:
    """What a candidate changes, in words; empty for no change."""
    said = [f"only {', '.join(parent.classes)} can be answers"] if parent.dropped_classes else []
    said += ["the white point of the new images is matched to that of the training set"] if chosen.white else []
    said += ["answers are sharpened: the norms learned to tell the new images apart"] if chosen.sharpened else []
    return tuple(said)


def _with_labels(
    parent: Parent,
    cells: Cells,
    given: npt.NDArray[np.int64],
    new: Sequence[str],
    chosen: Candidate,
    progress: Progress,
) -> Made:
    """The best of: the parent, the change without labels, and a head from labels on either of them."""
    classes = (*parent.classes, *new)
    rows = np.flatnonzero(given >= 0)
    labels, groups = given[rows], [cells.groups[row] for row in rows]
    before = _features(parent.start, cells.pixels, progress)
    after = before if chosen.network is parent.start else _features(chosen.network, cells.pixels, progress)
    old = with_new_classes(_layer_of(parent.start), len(new), before)
    plain = with_new_classes(_layer_of(chosen.network), len(new), after)
    with stage(progress, "fitting a last layer", unit="fits"):
        head = fit_head(after[rows], labels, groups, plain, after)
    outside = _layer_of(parent.network).of(parent.card.places_of(parent.dropped_classes))(before[rows])
    never = np.full_like(outside, -np.inf)
    options = {"parent": np.hstack([old(before[rows]), outside]), "unlabelled": np.hstack([plain(after[rows]), never])}
    if head.held_out is not None:
        options["head"] = np.hstack([head.held_out, never])
    return _best(parent, chosen, head, options, labels, classes)


def _best(
    parent: Parent,
    chosen: Candidate,
    head: Fitted,
    options: Mapping[str, Matrix],
    labels: npt.NDArray[np.int64],
    classes: tuple[str, ...],
) -> Made:
    """`options` are logits (labels, classes and those dropped); `classes` are without these."""
    said = (*_steps_of(parent, chosen), _head_said(head, len(labels)))
    if "head" not in options:
        return Made(_with_layer(chosen.network, head.layer), classes, said, None)
    every = (*classes, *parent.dropped_classes)
    compared = {name: compare(labels, options["parent"], logits, every) for name, logits in options.items()}
    best = max(compared, key=lambda name: compared[name]["after"]["macro_f1"])
    if best == "parent":
        return Made(parent.network, parent.card.classes, (), compared[best])
    if best == "unlabelled":
        return Made(chosen.network, parent.classes, _steps_of(parent, chosen), compared[best])
    temperature = fit_temperature(labels, _softmax(options["head"][:, : len(classes)]))
    cooled = Layer(head.layer.weights / temperature, head.layer.bias / temperature)
    return Made(_with_layer(chosen.network, cooled), classes, said, compared[best])


def _softmax(logits: Matrix) -> Matrix:
    from scipy.special import softmax

    return np.asarray(softmax(logits, axis=1))


def _head_said(head: Fitted, labels: int) -> str:
    return f"a new last layer from {counted(labels, 'label')}, added to {head.trust:.2f} times the old one"


def _features(network: Classifier, pixels: Tensor, progress: Progress) -> npt.NDArray[np.float64]:
    with stage(progress, "embedding", len(pixels)):
        return steps.features_of(network, pixels).double().numpy()


def _layer_of(network: Classifier) -> Layer:
    layer = last_layer(network)
    weights, bias = (value.detach().double().cpu().numpy() for value in (layer.weight, layer.bias))
    return Layer(weights, bias)


def _with_layer(network: Classifier, layer: Layer) -> Classifier:
    return steps.expand(network, torch.from_numpy(layer.weights), torch.from_numpy(layer.bias))
