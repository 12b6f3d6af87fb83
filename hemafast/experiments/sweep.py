"""Run published experiments one after the other, and write their scores beside the published ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from textwrap import fill
from typing import Any

import numpy as np

from hemafast import __version__
from hemafast.config import TrainConfig, to_plain
from hemafast.data.dataset import Dataset, open_dataset
from hemafast.evaluate.elsewhere import note_on_elsewhere
from hemafast.experiments.plan import RESULTS, Sweep
from hemafast.experiments.plots import plot_summary
from hemafast.experiments.published import SWEEPS, Experiment
from hemafast.experiments.runs import Failed, Outcome, Scored, csv_of, run_all, warnings_about, write_files
from hemafast.pictures import confusion_figure, drawn, save
from hemafast.preparation.split import TRAIN, VAL
from hemafast.progress import SILENT, Progress
from hemafast.words import counted

SUMMARY = "results_summary.csv"
PICTURE = "summary_f1.png"
PAGE = "results.md"
SCHEMA = 1

DONE, NOT_RUN, FAILED = "done", "not run", "failed"

_TITLE = 56  # letters per line of a picture's title

Result = dict[str, Any]

SOURCE = (
    "Published: results_summary.csv of github.com/harefi/Hematology-Challenge-HIDA, the best validation macro-F1 of "
    "all epochs, on a pooled 80/20 split of the whole archives, validated under training augmentation."
)
OURS = (
    "Here: the best validation macro-F1 of all epochs as well, but validation has no augmentation, and copies of a "
    "picture stay on one side of the split."
)


def run_sweep(sweep: Sweep, *, progress: Progress = SILENT) -> Result:
    """Run the chosen experiments, and write the results after each.

    Writes results.json, results_summary.csv, summary_f1.png, results.md and conf_matrix_NAME.png into the sweep's
    output, and each run into a folder below it. A second call reuses finished runs and resumes interrupted ones.
    Returns the content of results.json; `failures` names failed runs. Raises StoppedError if a signal stopped a run.
    """
    outcomes = dict(sweep.before)
    result = _write_results(sweep, outcomes)
    for name, outcome in run_all({name: sweep.configs[name] for name in sweep.chosen}, progress=progress):
        outcomes[name] = outcome
        if isinstance(outcome, Scored):
            confusion = {fill(f"{name} of {sweep.headline}", _TITLE): np.array(outcome.metrics["pooled"]["confusion"])}
            figure = confusion_figure(confusion, outcome.metrics["model"]["classes"])
            write_files(sweep.output, {f"conf_matrix_{name}.png": drawn(partial(save, figure))})
        result = _write_results(sweep, outcomes)
    return result


def _result(sweep: Sweep, outcomes: Mapping[str, Outcome]) -> Result:
    dataset = open_dataset(sweep.data)
    info = dataset.info
    return {
        "schema": SCHEMA,
        "hemafast": __version__,
        "sweep": sweep.name,
        "preset_scale": sweep.scale,
        "headline": sweep.headline,
        "caveat": sweep.caveat,
        "warnings": warnings_about(run for run in outcomes.values() if isinstance(run, Scored)),
        "domains": list(info.domains),
        "experiments": [
            _row(experiment, sweep.configs[experiment.preset], outcomes.get(experiment.preset))
            for experiment in SWEEPS[sweep.name]
        ],
        "failures": {name: outcome.reason for name, outcome in outcomes.items() if isinstance(outcome, Failed)},
        "notes": [SOURCE, f"{OURS} {_data_note(dataset)}", f"{note_on_elsewhere(dataset.domains)}."],
        "data": {
            "folder": str(dataset.folder),
            "fingerprint": info.fingerprint,
            "drawn": info.drawn,
            "settings": info.settings,
        },
    }


def _data_note(dataset: Dataset) -> str:
    info = dataset.info
    train, val = (len(dataset.images(split)) for split in (TRAIN, VAL))
    return (
        f"Data: {counted(train, 'training image')} and {counted(val, 'validation image')} of "
        f"{', '.join(info.domains)} (field of view: "
        f"{info.settings['field_of_view']}, split seed {info.settings['seed']}, fingerprint {info.fingerprint[:12]}); "
        "one training seed."
    )


def _row(experiment: Experiment, config: TrainConfig, outcome: Outcome | None) -> dict[str, Any]:
    """One experiment; without numbers if it was not run."""
    row = {
        "experiment": experiment.preset,
        "title": experiment.title,
        "published": experiment.published,
        "model": config.model,
        "epochs": config.epochs,
        "image_size": config.image_size,
        "seed": config.seed,
        "settings": to_plain(config),
        "status": FAILED if isinstance(outcome, Failed) else NOT_RUN,
    }
    if not isinstance(outcome, Scored):
        numbers = ("best_val_f1", "seconds", "images_per_second", "run")
        return row | dict.fromkeys(numbers) | {"ci95": [None, None], "by_domain": {}}
    metrics = outcome.metrics
    return row | {
        "status": DONE,
        "best_val_f1": metrics["pooled"]["macro_f1"],
        "ci95": metrics["pooled"]["ci95"]["macro_f1"],
        "by_domain": {name: scores["macro_f1"] for name, scores in metrics["domains"].items()},
        "seconds": metrics["training"]["total_seconds"],
        "images_per_second": metrics["training"]["train_images_per_second"],
        "run": str(outcome.folder),
    }


def _write_results(sweep: Sweep, outcomes: Mapping[str, Outcome]) -> Result:
    """Write tables and summary. Raises HemafastError if the output cannot be written."""
    result = _result(sweep, outcomes)
    rows = [_csv_row(row, result) for row in result["experiments"]]
    contents = {
        RESULTS: json.dumps(result, indent=2, allow_nan=False).encode() + b"\n",
        SUMMARY: csv_of(rows, list(rows[0])),
        PICTURE: drawn(lambda file: plot_summary(file, result["experiments"], fill(result["headline"], _TITLE))),
        PAGE: results_page(result).encode(),
    }
    write_files(sweep.output, contents)
    return result


def _csv_row(row: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """One experiment: the reference's two columns, then ours. Experiments not run have only a status."""
    low, high = row["ci95"]
    return {
        "experiment": row["experiment"],
        "best_val_f1": row["best_val_f1"],
        "ci95_low": low,
        "ci95_high": high,
        **{f"macro_f1_{name}": row["by_domain"].get(name) for name in result["domains"]},
        **{name: row[name] for name in ("epochs", "image_size", "seconds", "images_per_second", "published", "status")},
        "preset_scale": result["preset_scale"],
        "note": result["caveat"],
        "run": row["run"],
    }


def results_page(result: Mapping[str, Any]) -> str:
    """results.md: the table, notes on the published scores, and failures."""
    domains = [_cell(name) for name in result["domains"]]
    columns = ["experiment", "macro-F1", "95 % interval", "published", *domains, "epochs", "px", "minutes", "images/s"]
    lines = [f"# {result['headline']}", "", *(f"**{warning}.**\n" for warning in result["warnings"])]
    lines += [_line(columns), _line(["---"] * len(columns))]
    lines += [_line(_page_row(row, result["domains"])) for row in result["experiments"]]
    lines += ["", *(f"{note}\n" for note in result["notes"])]
    lines += [f"{name} failed: {_cell(reason)}\n" for name, reason in result["failures"].items()]
    return "\n".join(lines)


def _page_row(row: Mapping[str, Any], domains: Sequence[str]) -> list[str]:
    start, end = [row["title"]], [str(row["epochs"]), str(row["image_size"])]
    if row["best_val_f1"] is None:
        return [*start, row["status"], "", f"{row['published']:.4f}", *("" for _ in domains), *end, "", ""]
    low, high = row["ci95"]
    by_domain = [row["by_domain"].get(name) for name in domains]
    return [
        *start,
        f"**{row['best_val_f1']:.4f}**",
        f"{low:.4f} to {high:.4f}",
        f"{row['published']:.4f}",
        *("" if score is None else f"{score:.4f}" for score in by_domain),
        *end,
        f"{row['seconds'] / 60:.1f}",
        f"{row['images_per_second']:.1f}",
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    """Text without what would end a table cell or start a tag."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")
