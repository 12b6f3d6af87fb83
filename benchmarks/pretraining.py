"""What pretraining without labels is worth, by share of the labels: ImageNet weights alone, and pretrained further.

    python benchmarks/pretraining.py --source DIR_WITH_THE_ARCHIVES --json benchmarks/results/pretraining.json \
        --plot benchmarks/results/pretraining.png

The network is pretrained once for each seed: on the training images of one domain and on all images of the other
archives, never on a validation image. Then both starts are trained on the same share of the labels, drawn from each
class, with the same seed and settings. With --as-long, ImageNet weights are also trained for so many more epochs that
the network sees as many images as pretraining and training together show it. Seeds are the outer loop. The result is
written after each run, and a later call adds what is missing. `cpu_seconds` are those of the pretraining's process; no
figure here depends on other work beside.

A score is the mean over its seeds. Its interval is over the images, by the same resamples on both sides, and so is that
of the difference over the seeds that both have.
"""

from __future__ import annotations

import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from output import JsonFileAddedTo, before, machine_line, table, write_json

import hemafast as hf
from hemafast.engine.machine import machine_facts
from hemafast.evaluate.intervals import interval, resample
from hemafast.evaluate.metrics import Scores, confusions, count_scores

DOMAIN = "Acevedo_20"
SHARES = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
PLAIN = "ImageNet"
SHORT: dict[str, Any] = {"image_size": 96, "warmup": 0.15, "ema": 0.95, "amp": "off", "track": ()}
"""What makes the preset `quick` short."""
MOST_EPOCHS = 20
UNKNOWN = "unknown"
"""Class of images without a folder; pretraining does not look at it."""


def epochs_for(share: float) -> int:
    """Few labels are seen more often: 4 epochs of all, and at most MOST_EPOCHS."""
    return int(min(MOST_EPOCHS, np.round(4 / np.sqrt(share))))


def epochs_as_long(share: float, epochs: int, images: Mapping[str, int]) -> int:
    """Those of `epochs_for`, and so many that training sees the images too that pretraining sees, each in two views."""
    return epochs_for(share) + round(2 * epochs * images["unlabelled"] / (share * images["train"]))


def drawn(labels: Mapping[str, str], share: float, seed: int) -> list[str]:
    """Names of this share of the images of each class, at least one; `labels` by name."""
    generator, chosen = np.random.default_rng(seed), list[str]()
    for label in sorted(set(labels.values())):
        members = sorted(name for name in labels if labels[name] == label)
        count = max(1, round(share * len(members)))
        chosen += [members[place] for place in generator.permutation(len(members))[:count]]
    return chosen


def extracted(archive: Path, folder: Path) -> Iterable[tuple[str, str]]:
    """Unpack the images of an archive as folder/CLASS/FILE; yields class and file name of each."""
    with zipfile.ZipFile(archive) as opened:
        suffixes = {".jpg", ".jpeg", ".tiff", ".tif", ".bmp"}  # masks beside images are png
        for entry in opened.infolist():
            path = Path(entry.filename)
            if path.suffix.lower() in suffixes and "__MACOSX" not in path.parts:
                label = path.parent.name or UNKNOWN
                target = folder / label / path.name
                if not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(opened.read(entry))
                yield label, path.name


def linked(files: Iterable[tuple[Path, str]], folder: Path) -> None:
    """Link files as folder/CLASS/FILE, so that a data set can be prepared of some of them."""
    for file, label in files:
        target = folder / label / file.name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(file)


class Cells:
    """The images of DOMAIN with their split, and data sets made of some of them."""

    def __init__(self, source: Path, folder: Path) -> None:
        self._source, self._folder = source, folder
        whole = hf.prepare(source / f"{DOMAIN}.zip", folder / "whole")
        if whole.info.drawn:
            sys.exit(f"{source} holds drawn cells; no score on them is worth keeping.")
        self._images = {name: whole.images(name) for name in ("train", "val")}
        self._root = whole.folder
        self.labels = {Path(path).name: label for path, label in self._images["train"][["path", "label"]].to_numpy()}

    def of_share(self, share: float, seed: int) -> hf.Dataset:
        """All validation images, and a share of the training images."""
        chosen = set(drawn(self.labels, share, seed))
        folder = self._folder / f"share-{share:g}-{seed}"
        self._link(folder, lambda name: name in chosen)
        return hf.prepare(folder, folder / "prepared")

    def unlabelled(self) -> hf.Dataset:
        """All training images, and the images of the other archives."""
        folder = self._folder / "unlabelled"
        self._link(folder, lambda _: True)
        for archive in sorted(self._source.glob("*.zip")):
            if archive.stem != DOMAIN:
                list(extracted(archive, folder / archive.stem / "train"))
        return hf.prepare(folder, folder / "prepared", classes="from-data", max_quarantined=0.2)

    def _link(self, folder: Path, wanted: Any) -> None:
        for split, images in self._images.items():
            rows = images[["path", "label"]].to_numpy()
            files = ((self._root / path, label) for path, label in rows if split == "val" or wanted(Path(path).name))
            linked(files, folder / DOMAIN / split)


def main(
    source: Annotated[Path, typer.Option(help="Folder with the real archives.")],
    json_file: JsonFileAddedTo,
    method: Annotated[str, typer.Option(help="simclr, byol or dino.")] = "simclr",
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of pretraining.")] = 30,
    seeds: Annotated[int, typer.Option(min=1, help="How many runs each side has in the end.")] = 3,
    share: Annotated[list[float] | None, typer.Option(help="Share of the labels; may be repeated.")] = None,
    as_long: Annotated[bool, typer.Option(help="Also train ImageNet weights for as long as both together.")] = False,
    work: Annotated[Path | None, typer.Option(help="Where data and runs are kept.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the curve to this PNG.")] = None,
) -> None:
    """Pretrain, and train both starts with every share of the labels and every seed."""
    asked = f"{method}, {epochs} epochs"
    longer = f"{PLAIN}, trained as long"
    with tempfile.TemporaryDirectory() as temporary:
        folder = work or Path(temporary)
        cells = Cells(source, folder)
        result: dict[str, Any] = {
            "machine": machine_facts("cpu"),
            "domain": DOMAIN,
            "changes": SHORT,
            "pretraining": {},
        }
        result |= {"labels": [], "classes": [], "runs": {}, "images": {"train": len(cells.labels)}}
        result |= before(json_file, result["machine"])
        for seed in map(str, range(seeds)):
            for part in share or SHARES:
                for start in (PLAIN, asked, *([longer] if as_long else [])):
                    runs = result["runs"].setdefault(start, {}).setdefault(f"{part:g}", {})
                    if seed in runs:
                        continue
                    pretrained = (
                        _pretrained(cells, method, epochs, int(seed), folder, result) if start == asked else None
                    )
                    many = epochs_as_long(part, epochs, result["images"]) if start == longer else epochs_for(part)
                    changes = {"epochs": many, "weights": pretrained, "output": folder / "runs"}
                    runs[seed] = _predicted(cells, part, int(seed), changes, result)
                    result["scores"] = judged(result)
                    write_json(result, json_file)
                    score = result["scores"][start][f"{part:g}"]["mean"]
                    typer.echo(f"{start}, {part:.0%} of the labels, seed {seed}: mean macro-F1 {score:.3f}", err=True)
        if plot is not None:
            draw(result["scores"], plot)


def _pretrained(cells: Cells, method: str, epochs: int, seed: int, folder: Path, result: dict[str, Any]) -> Path:
    """The pretraining run of a seed, which is made once and goes on where an earlier call was stopped."""
    data, began = cells.unlabelled(), time.process_time()
    named = {"method": method, "epochs": epochs, "image_size": SHORT["image_size"]}
    run = hf.pretrain(data, output=folder / f"pretraining-{method}-{epochs}-{seed}", seed=seed, go_on=True, **named)
    rows = run.history
    last = rows[rows["phase"] == "val"].iloc[-1]
    result["images"]["unlabelled"] = int(data.counts("train").sum())
    known = result["pretraining"].setdefault(f"{method}, {epochs} epochs", {})
    known.setdefault(
        str(seed),
        {
            "cpu_seconds": time.process_time() - began,
            "knn_accuracy": float(last["knn_accuracy"]),
            "feature_spread": float(last["feature_spread"]),
        },
    )
    return run.folder


def _predicted(cells: Cells, share: float, seed: int, changes: Mapping[str, Any], result: dict[str, Any]) -> list[int]:
    """Train, and return the predicted classes of the validation images; notes the true ones in `result`."""
    data = cells.of_share(share, seed)
    run = hf.train(data, preset="quick", seed=seed, **SHORT, **changes)
    answers = run.predictions.sort_values("image")
    places = {name: place for place, name in enumerate(data.classes)}
    result["classes"], result["labels"] = data.classes, [places[name] for name in answers["label"]]
    return [places[name] for name in answers["predicted"]]


def judged(result: Mapping[str, Any]) -> dict[str, Any]:
    """By start and share, the seeds, the scores with their interval, and the gain over ImageNet weights alone."""
    labels, classes = np.array(result["labels"]), len(result["classes"])

    def macro_f1(predicted: list[int]) -> Scores:
        chunks = (confusions(labels, np.array(predicted), weights, classes) for weights in resample(len(labels)))
        return np.concatenate([count_scores(chunk)["macro_f1"] for chunk in chunks])

    found = {
        start: {share: {seed: macro_f1(run) for seed, run in runs.items()} for share, runs in shares.items() if runs}
        for start, shares in result["runs"].items()
    }
    plain = found.get(PLAIN, {})
    return {
        start: {share: _told(seeds, {} if start == PLAIN else plain.get(share, {})) for share, seeds in shares.items()}
        for start, shares in found.items()
    }


def _told(seeds: Mapping[str, Scores], base: Mapping[str, Scores]) -> dict[str, Any]:
    def of(scores: list[Scores]) -> dict[str, Any]:
        mean = np.mean(scores, axis=0)
        return {"mean": float(mean[0]), "ci95": interval(mean).tolist(), "by_seed": [float(one[0]) for one in scores]}

    told = {"seeds": list(seeds), **of(list(seeds.values()))}
    shared = [seed for seed in seeds if seed in base]
    return {**told, "gain": of([seeds[seed] - base[seed] for seed in shared])} if shared else told


def draw(scores: Mapping[str, Any], file: Path) -> None:
    """Macro-F1 against the share of the labels: a line for each start, its interval as a band."""
    from hemafast.pictures import DOMAIN_COLOURS, save, subplots

    figure, (panel,) = subplots(1, width=6.4, height=3.8, columns=1)
    shares = sorted({float(share) for found in scores.values() for share in found})
    for (start, found), colour in zip(scores.items(), DOMAIN_COLOURS, strict=False):
        points = sorted((float(share), one["mean"], *one["ci95"]) for share, one in found.items())
        places, means, lows, highs = zip(*points, strict=True)
        panel.plot(places, means, "o-", ms=4, color=colour, label=start)
        panel.fill_between(places, lows, highs, color=colour, alpha=0.2, linewidth=0)
    panel.set_xscale("log")
    panel.set_xticks(shares, [f"{share:.0%}" for share in shares])
    panel.set_xticks([], minor=True)
    panel.set_xlabel("share of the labels")
    panel.set_ylabel("macro-F1")
    panel.grid(alpha=0.3)
    panel.legend(frameon=False)
    save(figure, file)


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """The scores by share of the labels."""
    result = results["pretraining"]
    starts = list(result["scores"])
    rows = [
        [f"{float(share):.0%}", *(_cell(result["scores"][start].get(share)) for start in starts)]
        for share in sorted(result["scores"][PLAIN], key=float)
    ]
    cost = "; ".join(
        f"{name}, seed {seed}: {run['cpu_seconds'] / 60:.0f} CPU minutes, kNN accuracy {run['knn_accuracy']:.3f}"
        for name, runs in result["pretraining"].items()
        for seed, run in runs.items()
    )
    note = (
        f"`benchmarks/pretraining.py`: `quick` at {result['changes']['image_size']} px on a share of "
        f"{result['images']['train']:,} labelled images of {result['domain']}, scored on {len(result['labels'])} "
        f"others; pretraining on {result['images'].get('unlabelled', 0):,} images. macro-F1, mean over the seeds "
        f"(95 % interval over the images; gain over ImageNet weights alone, seed by seed). {cost}. "
        f"{machine_line(result['machine'])}"
    )
    return {"pretraining": table(" | ".join(["labels", *starts]), rows, note)}


def _cell(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "not measured"
    low, high = found["ci95"]
    seeds = len(found["seeds"])
    text = f"{found['mean']:.3f} ({low:.3f} to {high:.3f}; {seeds} seed{'s' if seeds != 1 else ''})"
    if "gain" not in found:
        return text
    gain = found["gain"]
    return f"{text}, gain {gain['mean']:+.3f} ({gain['ci95'][0]:+.3f} to {gain['ci95'][1]:+.3f})"


if __name__ == "__main__":
    typer.run(main)
