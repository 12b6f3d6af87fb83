"""Score the best model of a run on validation or test images, by domain and pooled.

On the run's own validation images, temperature and thresholds are fitted on half of them, and calibrated scores are
reported on the other half. All other scores use all images. Nothing is ever fitted on test images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from hemafast.command import command_to_evaluate
from hemafast.config import Device, ScoredSplit, TrainConfig
from hemafast.data.dataset import Dataset, open_dataset
from hemafast.data.loader import eval_loader
from hemafast.data.samples import Samples
from hemafast.engine.checkpoint import DRAWN_WARNING, Calibration, ModelCard, load_best, model_file, save_calibration
from hemafast.engine.journal import measured, read_rows
from hemafast.engine.learner import build_eval_step
from hemafast.engine.plan import machine_and_graph
from hemafast.engine.step import Totals
from hemafast.engine.validate import validate
from hemafast.errors import ClassesError, HemafastError
from hemafast.evaluate.calibration import TARGET, calibrate, soften
from hemafast.evaluate.conformal import in_sets, set_scores
from hemafast.evaluate.folding import Folding, OtherClassesError, fold_classes
from hemafast.evaluate.likeness import (
    ALARM,
    LEAST_IMAGES,
    Likeness,
    Likenesses,
    Watching,
    describe,
    joined,
    judge,
    learn,
    load_likeness,
    save_likeness,
    unknown,
)
from hemafast.evaluate.looks import take_look
from hemafast.evaluate.metrics import Labels, Probabilities
from hemafast.evaluate.nucleus_sizes import nuclei_of
from hemafast.evaluate.predictions import prediction_table
from hemafast.evaluate.scale_warnings import scale_warnings
from hemafast.evaluate.scores import calibrated_scores, score, scores_among
from hemafast.files import make_inside, write_table, write_text, write_whole
from hemafast.lineage import Lineage, packaged_lineage
from hemafast.metrics import macro_f1, with_pooled
from hemafast.model import Network
from hemafast.pictures import confusion_figure, save
from hemafast.preparation.schema import divided_groups, grouped_domains
from hemafast.preparation.split import ALL, TRAIN, VAL, WORDS, assign_split
from hemafast.preparation.tables.lists import read_class_map
from hemafast.progress import SILENT, Progress, stage
from hemafast.run_folder import (
    BEST,
    CONFUSION_PLOT,
    EVALUATIONS,
    METRICS,
    METRICS_SCHEMA,
    PREDICTIONS,
    read_config,
    read_metrics,
)
from hemafast.words import counted

FITTED, REPORTED = "calibration", "report"
"""The two halves of the validation images, as predictions.csv names them."""

_PREPARED = "prepared"  # the usual name of a prepared data set; its parent says more
_LONGEST = 60  # letters of a data set's name
_FOLDED = "folded"

Metrics = dict[str, Any]
Counts = dict[str, dict[str, dict[str, int]]]
"""Images by split, domain and class."""
Mask = npt.NDArray[np.bool_]


def evaluate_run(
    folder: Path,
    *,
    data: Path | None = None,
    split: ScoredSplit = "val",
    class_map: Mapping[str, str] | Path | None = None,
    device: Device = "auto",
    progress: Progress = SILENT,
) -> Metrics:
    """Score the best model of a run on the validation images, or on the test images.

    Writes METRICS, PREDICTIONS and CONFUSION_PLOT into `scores_folder(folder, metrics)`. For the run's own validation
    images in its own classes, that is the run folder. Writes CALIBRATION and LIKENESS for its own validation images.
    Each look at test images is counted beside the data set, by `take_look`.

    Args:
        folder: a run folder.
        data: prepared data set to score on; None for the run's own. Its classes may be others; see `folding`.
        split: which of its images to score; "all" is for other data. Of test images and of other data, all are
            reported on, with the calibration that the model has.
        class_map: new names for classes of the model, of the data or of both, which merges those of one name; "" leaves
            the images of a class out. A mapping, or a table with the columns from and to.
        device: where the model runs.
        progress: listens to how many images are classified.

    Returns:
        The content of METRICS.

    Raises:
        HemafastError: `folder` is no run, its model is missing or damaged, the data has no such split or other classes,
            the class map names an unknown class, or the run's own data changed since training.
    """
    _refuse_unknown_split(split)
    config, given = read_config(folder), read_class_map(class_map or {})
    model, card = load_best(folder / BEST)
    dataset, own = _data_to_score(folder, config, card, data, split)
    samples = dataset.samples(split, config.image_size)
    folding = _folding(folder, card, dataset, samples, split, given)
    calibrates = own and split == VAL
    if calibrates:
        _refuse_folds(folder, card)
    fitted = calibration_part(dataset, card) if calibrates else np.zeros(len(samples), dtype=bool)
    likeness = None if calibrates else load_likeness(folder / BEST, card)
    known = _in_model(card, dataset, samples)
    # Its loss is not used, but needs labels that are outputs of the model.
    seen = _classify(model, card, config, replace(samples, labels=known.clip(0)), device, fitted, likeness, progress)
    probabilities, likeness = seen.probabilities, seen.likeness
    lineage = card.lineage or packaged_lineage()
    calibration = _calibration(card, known, probabilities, fitted, lineage.blast)
    if calibrates:
        calibration = replace(calibration, nuclei=nuclei_of(dataset, card))
    answers = _answers(dataset.images(split), samples, folding, seen, calibration, fitted)
    judged = _judge(answers, likeness)
    unlike = [] if calibrates else _unlike(judged)  # at home, alarms are false
    scores = _scores(answers, calibration, lineage)
    look = take_look(dataset, split, folder, epoch=card.epoch, macro_f1=scores["pooled"]["macro_f1"])
    again = [look.told()] if look and look.number > 1 else []
    training = _training(folder, config)
    metrics = {
        "schema": METRICS_SCHEMA,
        "split": split,
        "warnings": [
            *again,
            *_warnings(dataset, card),
            *_cut_short(training, config, dataset, card, own=own),
            *_fitted_here(card, split, own=own),
            *_untrained(folder, dataset, card, folding),
            *([] if own else scale_warnings(card.view, dataset.info)),
            *unlike,
        ],
        "look": look and asdict(look) | {"told": look.told()},
        "classes": list(folding.classes),
        "folding": {**folding.account, "own_classes": None if own else _own_classes(answers, folding, dataset)},
        **scores,
        "likeness": judged,
        "model": {**asdict(replace(card, calibration=calibration)), "file": BEST},
        "data": _data(dataset),
        "training": training,
    }
    if calibrates:
        save_calibration(folder / BEST, card, calibration)
        save_likeness(folder / BEST, card, likeness)
    _write(scores_folder(folder, metrics), metrics, _predictions(answers))
    return metrics


def _data_to_score(
    folder: Path, config: TrainConfig, card: ModelCard, data: Path | None, split: str
) -> tuple[Dataset, bool]:
    """The data set, and whether it is the run's own."""
    dataset = open_dataset(data or config.data)
    own = dataset.info.fingerprint == card.data_fingerprint
    if not own and data is None:
        raise HemafastError(
            f"{dataset.folder} is not the data that {folder / BEST} was trained with (its fingerprint differs).",
            "Prepare the same archives with the same settings again, or score it as other data with --data.",
        )
    if own and split == ALL:
        raise HemafastError(
            f"split = 'all': {folder / BEST} was trained on most images of {dataset.folder}.",
            "Score its validation or test images, or all images of other data with --data.",
        )
    return (replace(dataset, fold=config.fold) if own else dataset), own


def scores_folder(folder: Path, metrics: Metrics) -> Path:
    """The folder that holds `metrics` of the run in `folder`: `folder` itself, or one of its EVALUATIONS.

    Other data than the run's has a folder named after it, with the first 8 characters of its fingerprint. Test
    images, all images, and scores with a class map have a folder of their own: its name ends in test, all or folded.
    """
    data, fingerprint = Path(metrics["data"]["folder"]).absolute(), metrics["data"]["fingerprint"]
    parts = [] if metrics["split"] == VAL else [metrics["split"]]
    parts += [_FOLDED] if metrics.get("folding", {}).get("class_map") else []
    if fingerprint != metrics["model"]["data_fingerprint"]:
        name = (data.parent if data.name == _PREPARED else data).name or _PREPARED
        parts = [name[:_LONGEST], fingerprint[:8], *parts]
    return folder / EVALUATIONS / "-".join(parts) if parts else folder


def run_of(folder: Path) -> Path:
    """The run folder that scores in `folder` belong to: the reverse of `scores_folder`."""
    home = folder.absolute().parent
    return home.parent if home.name == EVALUATIONS else folder


def _refuse_unknown_split(split: str) -> None:
    if split not in get_args(ScoredSplit):
        raise HemafastError(
            f"split = {split!r}: a run is not scored on such images.",
            f"Choose from: {', '.join(get_args(ScoredSplit))}.",
        )


def _write(folder: Path, metrics: Metrics, table: pd.DataFrame) -> None:
    text = json.dumps(metrics, indent=2, allow_nan=False) + "\n"
    matrices, images = {}, f"{WORDS[metrics['split']]} images"
    for name, scores in with_pooled(metrics["domains"], metrics["pooled"]).items():
        matrix = np.array(scores["confusion"])
        matrices[f"{name}: macro-F1 {macro_f1(matrix):.3f}, {int(matrix.sum())} {images}"] = matrix
    figure = confusion_figure(matrices, metrics["classes"])
    if folder.parent.name == EVALUATIONS:  # in a run folder, which exists
        make_inside(folder.parent)
        make_inside(folder)
    write_table(folder / PREDICTIONS, table)
    write_whole(folder / CONFUSION_PLOT, lambda part: save(figure, part))
    write_text(folder / METRICS, text)


@dataclass(frozen=True, slots=True)
class _Answers:
    """What the model says of the images that are scored, in the classes that it is compared in."""

    classes: tuple[str, ...]
    images: npt.NDArray[np.object_]
    domains: npt.NDArray[np.str_]
    labels: Labels
    raw: Probabilities
    """(images, classes), uncalibrated."""
    softened: Probabilities
    """(images, classes), calibrated."""
    merged: bool
    """Whether classes of the model were merged: then the temperature decides which class is the likeliest."""
    fitted: Mask
    """(images,): which the calibration was fitted on."""
    sets: Mask | None
    """(images, classes): which classes are in the set of each image; None without a calibration of sets."""
    likenesses: Likenesses
    """(images, 3), nan without a likeness."""
    disagreements: npt.NDArray[np.float32] | None
    """(images,): of the members of an ensemble; None for one network."""


def _answers(
    images: pd.DataFrame,
    samples: Samples,
    folding: Folding,
    seen: _Seen,
    calibration: Calibration,
    fitted: Mask,
) -> _Answers:
    probabilities = seen.probabilities
    labels = folding.labels[samples.labels]
    kept = labels >= 0
    softened = soften(probabilities[kept], calibration.temperature)  # fitted on the classes of the model
    thresholds = calibration.set_thresholds
    sets = None if thresholds is None else folding.probabilities(in_sets(softened, thresholds).astype(float)) > 0
    return _Answers(
        classes=folding.classes,
        images=images["path"].to_numpy()[kept],
        domains=samples.domains[kept],
        labels=labels[kept],
        raw=folding.probabilities(probabilities[kept]),
        softened=folding.probabilities(softened),
        merged=len(folding.classes) < len(folding.answers),
        fitted=fitted[kept],
        sets=sets,
        likenesses=seen.likenesses[kept],
        disagreements=None if seen.disagreements is None else seen.disagreements[kept],
    )


def _folding(
    folder: Path, card: ModelCard, dataset: Dataset, samples: Samples, split: str, given: Mapping[str, str]
) -> Folding:
    """Raises HemafastError with a command that works where the classes have other names."""
    counts = np.bincount(samples.labels, minlength=len(dataset.info.classes))
    try:
        return fold_classes(card.classes, dict(zip(dataset.info.classes, counts.tolist(), strict=True)), given)
    except OtherClassesError as error:
        command = command_to_evaluate(folder, dataset.folder, split, error.suggested)
        raise ClassesError(
            f"{dataset.folder}: {error.problem}", f"If you agree (NAME= leaves a class out): {command}"
        ) from error


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one pass through the network says of the images."""

    probabilities: npt.NDArray[np.float32]
    """(images, classes), uncalibrated."""
    likeness: Likeness | None
    likenesses: Likenesses
    disagreements: npt.NDArray[np.float32] | None


def _classify(
    model: Network,
    card: ModelCard,
    config: TrainConfig,
    samples: Samples,
    device: Device,
    fitted: Mask,
    likeness: Likeness | None,
    progress: Progress,
) -> _Seen:
    """The likeness is `likeness`, or one learned from the `fitted` images if they are enough. One pass answers all."""
    machine, graph = machine_and_graph(as_seen(config, card, samples), device, samples)
    learns = int(fitted.sum()) >= LEAST_IMAGES
    watching = Watching(model, joined if learns else likeness.to(machine.device) if likeness else unknown)
    step, totals = build_eval_step(model, machine, watching), Totals(len(card.classes), machine.device)
    with stage(progress, "evaluating", len(samples)):
        loader = eval_loader(samples, shape=graph)
        probabilities = validate(model, step, loader, samples, totals, on_batch=progress.advance).probabilities
    notes = watching.noted()
    disagreements = watching.disagreements().numpy() if len(model.networks) > 1 else None
    if learns:
        likeness, notes = learn(notes, samples.labels, samples.domains, fitted)
    return _Seen(probabilities, likeness, notes.numpy(), disagreements)


def as_seen(config: TrainConfig, card: ModelCard, samples: Samples) -> TrainConfig:
    """The settings to read images with: the best epoch may have used smaller ones than the last."""
    own = samples.fingerprint == card.data_fingerprint
    source = config.input if own else "auto"  # other data may not have what the run read
    return replace(config, input=source, image_size=card.image_size, growing_from=(), compile="off")


def calibration_part(dataset: Dataset, card: ModelCard) -> Mask:
    """(images,): half of each class in each training domain. A hash draws it, and groups stay together."""
    images = dataset.images(VAL, "group")
    part = assign_split(images, val_fraction=0.5, seed=0)
    return np.asarray((part == TRAIN) & images["domain"].isin(card.domains))


def _in_model(card: ModelCard, dataset: Dataset, samples: Samples) -> Labels:
    """(images,): places among the classes of the model; -1 for one that it lacks, as adapted ones may."""
    places: Labels = pd.Index(card.classes).get_indexer(pd.Index(dataset.info.classes)).astype(np.int64)
    return places[samples.labels]


def _calibration(
    card: ModelCard, labels: Labels, probabilities: npt.NDArray[np.float32], fitted: Mask, blast: str | None
) -> Calibration:
    """Fitted on those of the `fitted` images that are of a class of the model; what the model has if there are none."""
    known = fitted & (labels >= 0)
    if not known.any():
        return card.calibration or Calibration(temperature=1.0, threshold=None, target=TARGET, images=0)
    column = card.classes.index(blast) if blast in card.classes else None
    return calibrate(labels[known], probabilities[known], blast=column)


def _scores(answers: _Answers, calibration: Calibration, lineage: Lineage) -> Metrics:
    """Scores, pooled and by domain."""
    parts = {"pooled": np.ones(len(answers.labels), dtype=bool)}
    parts |= {str(name): answers.domains == name for name in np.unique(answers.domains)}
    scores = {name: _score(answers, part, calibration, lineage) for name, part in parts.items()}
    return {"pooled": scores.pop("pooled"), "domains": scores}


def _own_classes(answers: _Answers, folding: Folding, dataset: Dataset) -> dict[str, Any] | None:
    """What the scores would be if no class that the data has no image of could be an answer; None if it has of all."""
    there = np.isin(dataset.info.classes, dataset.images(ALL)["label"].unique())
    places = sorted({*folding.labels[there].tolist()} - {-1})
    if not 1 < len(places) < len(folding.classes):
        return None
    names = [name for name, new in zip(folding.model, folding.answers, strict=True) if new in places]
    return {"classes": names, **scores_among(answers.labels, answers.softened, places)}


def _judge(answers: _Answers, likeness: Likeness | None) -> dict[str, Any] | None:
    """What the likeness says of the images that it was not fitted on, pooled and by domain; None without one.

    On the validation images of the run itself, alarms are false.
    """
    if likeness is None:
        return None
    reported = ~answers.fitted
    parts = {str(name): answers.domains == name for name in np.unique(answers.domains)}
    return {
        "fitted_on": likeness.images,
        "alarm": ALARM,
        "pooled": judge(answers.likenesses[reported], likeness.images),
        "domains": {name: judge(answers.likenesses[of & reported], likeness.images) for name, of in parts.items()},
    }


def _unlike(judged: Mapping[str, Any] | None) -> list[str]:
    """A warning if the images as a whole are unlike those of training."""
    said = judged and describe(judged["pooled"])
    return [said] if said else []


def _score(answers: _Answers, part: Mask, calibration: Calibration, lineage: Lineage) -> Metrics:
    labels, raw, softened = answers.labels[part], answers.raw[part], answers.softened[part]
    plain = score(labels, softened if answers.merged else raw, answers.classes, lineage=lineage)
    reported = part & ~answers.fitted
    sets = answers.sets if answers.sets is None else answers.sets[reported]
    reported_here = ~answers.fitted[part]
    return (
        plain
        | calibrated_scores(labels, raw, softened, answers.classes, calibration, reported_here, lineage.blast)
        | {"sets": set_scores(answers.labels[reported], sets, answers.classes)}
    )


def _predictions(answers: _Answers) -> pd.DataFrame:
    """One row per image, with calibrated probabilities."""
    names = np.array(answers.classes, dtype=object)
    columns = {
        "image": answers.images,
        "domain": answers.domains,
        "label": names[answers.labels],
        "part": np.where(answers.fitted, FITTED, REPORTED),
        "likeness": answers.likenesses[:, 0],
    }
    if answers.disagreements is not None:
        columns["disagreement"] = answers.disagreements
    return prediction_table(answers.classes, answers.softened.astype(np.float32), columns)


def _data(dataset: Dataset) -> dict[str, Any]:
    info = dataset.info
    return {
        "folder": str(dataset.folder),
        "fingerprint": info.fingerprint,
        "drawn": info.drawn,
        "split_seed": info.settings["seed"],
        "val_fraction": info.settings["val_fraction"],
        "counts": info.counts,
        "grouped": grouped_domains(dataset.files.columns("verdict", "domain", "group", "duplicate_group")),
        "prepared_by": info.settings,
        "domains": {name: domain.model_dump() for name, domain in info.domains.items()},
    }


def _training(folder: Path, config: TrainConfig) -> dict[str, Any]:
    rows = read_rows(folder)
    rates, times = (measured(rows, "train", name) for name in ("images_per_second", "seconds"))
    seconds = sum(times)
    images = sum(rate * time for rate, time in zip(rates, times, strict=True))
    return {
        "preset": config.preset,
        "seed": config.seed,
        "epochs": len(rates),
        "images": round(images),
        "train_seconds": seconds,
        "total_seconds": seconds + sum(measured(rows, "val", "seconds")),
        "train_images_per_second": images / seconds if rates else None,
        "teacher": _teacher(config),
    }


def _teacher(config: TrainConfig) -> dict[str, Any] | None:
    """The model that taught a run, with its score where it is known."""
    if config.teacher is None:
        return None
    try:
        score = read_metrics(model_file(config.teacher).parent)["pooled"]["macro_f1"]
    except HemafastError:
        score = None
    return {"model": str(config.teacher), "weight": config.teacher_weight, "macro_f1": score}


def _warnings(dataset: Dataset, card: ModelCard) -> list[str]:
    warnings = []
    if dataset.info.drawn or card.drawn_data:
        warnings.append(DRAWN_WARNING)
    if card.started_from.startswith("RANDOM"):
        warnings.append(f"Training started from {card.started_from}")
    if others := [name for name in dataset.info.domains if name not in card.domains]:
        warnings.append(f"Trained on {' and '.join(card.domains)}, not on {' and '.join(others)}")
    if card.data_fingerprint != dataset.info.fingerprint:
        warnings.append(
            "This is not the data that the model was trained with: the model may have been trained on some of these "
            "images"
        )
    if divided := divided_groups(dataset.files.columns("verdict", "split", "group")):
        warnings.append(
            f"{counted(divided, 'patient or slide has', 'patients or slides have')} images in several splits: "
            "scores may be too good"
        )
    return warnings


def _cut_short(
    training: Mapping[str, Any], config: TrainConfig, dataset: Dataset, card: ModelCard, *, own: bool
) -> list[str]:
    """A warning where a time budget ended before the model had seen its training images once."""
    if config.time_budget is None or not own or not training["epochs"]:
        return []
    images, seen = int(dataset.images(TRAIN)["domain"].isin(card.domains).sum()), training["images"]
    if seen >= images:
        return []
    return [f"The time budget ended training within its first epoch: it saw {seen:,} of {images:,} training images"]


def _fitted_here(card: ModelCard, split: str, *, own: bool) -> list[str]:
    """A warning where an ensemble was fitted on some of the images that are scored."""
    if card.combined is None or not card.combined.fitted_on or not own or split != VAL:
        return []
    images = counted(card.combined.fitted_on, "validation image")
    return [
        f"Weights or members of the ensemble were chosen on {images} (the calibration half): scores of all validation "
        "images are slightly too good; those of the other half are not"
    ]


def _refuse_folds(folder: Path, card: ModelCard) -> None:
    if card.combined and card.combined.folds:
        raise HemafastError(
            f"{folder} is an ensemble of folds, whose members were trained on validation images of one another.",
            "Score it on test images (--split test) or on other data (--data).",
        )


def _untrained(folder: Path, dataset: Dataset, card: ModelCard, folding: Folding) -> list[str]:
    """A warning of the classes compared that the model had no training images of, where its training data is known."""
    counts = dataset.info.counts if card.data_fingerprint == dataset.info.fingerprint else _home_counts(folder, card)
    trained = [counts.get(TRAIN, {}).get(domain, {}) for domain in card.domains]
    places = [
        place
        for name, place in zip(card.classes, folding.answers, strict=True)
        if any(images.get(name) for images in trained)
    ]
    known = {folding.classes[place] for place in places}
    missing = [name for name in folding.account["compared"] if name not in known] if known else []
    return [f"The model had no training images of {' and '.join(missing)}, and scores 0 there"] if missing else []


def _home_counts(folder: Path, card: ModelCard) -> Counts:
    """Images of the data that the run was trained on, as its own scores say; none before it was evaluated."""
    try:
        data = read_metrics(folder)["data"]
    except HemafastError:
        return {}
    return dict(data["counts"]) if data["fingerprint"] == card.data_fingerprint else {}
