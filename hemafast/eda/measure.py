"""The content of a prepared data set as numbers and rows: counts, sizes, colours, samples, copies."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hemafast.data.dataset import Dataset
from hemafast.preparation import schema
from hemafast.preparation.appearance import find_implausible
from hemafast.preparation.split import TEST, VAL

_SEED = 0  # of samples and pixels: the page is the same each time
_IMAGES_FOR_COLOUR = 300  # per domain
_PIXELS_PER_IMAGE = 200
_MEASURED = 3  # cells of each domain with a bar
_MOST_SIZES = 8  # of one domain that are listed one by one


def count_classes(dataset: Dataset) -> pd.DataFrame:
    """Accepted images of each class (rows, in label order) in each domain (columns)."""
    return _count(dataset, schema.accepted(dataset.table))


def count_parts(dataset: Dataset) -> dict[str, pd.DataFrame]:
    """Images of each class and domain, for each split; with folds, for each fold and the test split."""
    manifest = dataset.table
    parts = {split: schema.in_split(manifest, split) for split in dataset.info.counts}
    if dataset.info.folds:
        held_out = {TEST: parts[TEST]} if TEST in parts else {}
        parts = {f"fold {fold}": schema.in_split(manifest, VAL, fold) for fold in range(dataset.info.folds)} | held_out
    return {name: _count(dataset, images) for name, images in parts.items()}


def _count(dataset: Dataset, images: pd.DataFrame) -> pd.DataFrame:
    counts = pd.crosstab(images["label"], images["domain"])
    return counts.reindex(index=list(dataset.info.classes), columns=list(dataset.info.domains), fill_value=0)


def count_files(dataset: Dataset) -> pd.DataFrame:
    """Images by domain, size in pixels, format and layout, with their mean size in bytes and the size that is kept."""
    images = schema.accepted(dataset.table)
    keys = ["domain", "width", "height", "window", "format", "mode"]
    files = images.groupby(keys).agg(images=("path", "size"), bytes=("bytes", "mean")).reset_index()
    sides = files[["width", "height"]].min(axis=1)
    domains = [dataset.info.domains[name] for name in files["domain"]]
    scale = np.array([one.um_per_pixel_of(side) for one, side in zip(domains, sides, strict=True)], dtype=float)
    return files.assign(um=files["window"] * scale).sort_values(["domain", "images"], ascending=[True, False])


def list_sizes(files: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of `count_files` as text; sizes of a domain that has many become one row for each format and layout."""
    sizes = ["width", "height", "window", "um"]
    rows: list[dict[str, Any]] = []
    for _, part in files.groupby("domain", sort=False):
        keys = ["domain", "format", "mode"] if len(part) > _MOST_SIZES else [*part.columns]
        for _, same in part.groupby(keys, sort=False, dropna=False):
            first, images = same.iloc[0], int(same["images"].sum())
            size = float((same["bytes"] * same["images"]).sum() / images)
            spans = {name: _span(same[name]) for name in sizes}
            rows.append({**first[["domain", "format", "mode"]], **spans, "images": images, "bytes": size})
    return rows


def _span(values: pd.Series[Any]) -> str:
    least, most = values.min(), values.max()
    if pd.isna(least):
        return "unknown"
    shown = [f"{value:.1f}" if isinstance(value, float) else str(value) for value in (least, most)]
    return " to ".join(dict.fromkeys(shown))


def shown_images(dataset: Dataset) -> pd.DataFrame:
    """The images whose colours and pictures the page shows: no test images, so that no choice depends on these."""
    images = schema.accepted(dataset.table)
    return images[images["split"] != TEST]


def mean_colours(dataset: Dataset) -> dict[str, npt.NDArray[np.float64]]:
    """By domain: (images, 3), the mean red, green and blue of each image, 0 to 255."""
    images = shown_images(dataset)
    columns = ["mean_red", "mean_green", "mean_blue"]
    return {str(name): part[columns].to_numpy() for name, part in images.groupby("domain")}


def sample_pixels(dataset: Dataset) -> dict[str, npt.NDArray[np.uint8]]:
    """By domain: uint8 (n, 3), pixels at random places of random images."""
    generator = np.random.default_rng(_SEED)
    packed = dataset.files.packed[max(dataset.info.pack_sizes)]
    images = shown_images(dataset)
    found = {}
    for name, part in images.groupby("domain"):
        rows = generator.permutation(part.index.to_numpy())[:_IMAGES_FOR_COLOUR]
        places = generator.integers(0, packed.size**2, (len(rows), _PIXELS_PER_IMAGE))
        found[str(name)] = np.concatenate(
            [packed[row].reshape(-1, 3)[place] for row, place in zip(rows, places, strict=True)]
        )
    return found


def choose_samples(dataset: Dataset, images_per_class: int) -> dict[str, dict[str, list[int]]]:
    """By class and domain: rows of the manifest, drawn at random."""
    generator = np.random.default_rng(_SEED)
    images = shown_images(dataset)
    strata = {key: part.index.to_numpy() for key, part in images.groupby(["label", "domain"])}
    return {
        label: {
            domain: generator.permutation(strata[label, domain])[:images_per_class].tolist()
            for domain in dataset.info.domains
            if (label, domain) in strata
        }
        for label in dataset.info.classes
    }


def choose_measured(dataset: Dataset, samples: dict[str, dict[str, list[int]]]) -> dict[str, list[tuple[int, float]]]:
    """By domain of known scale: rows of a few of the samples, of different classes, and the pixels' field in um."""
    chosen: dict[str, list[tuple[int, float]]] = {}
    sizes = dataset.table[["width", "height", "window"]].to_numpy()
    for name, domain in dataset.info.domains.items():
        rows = [domains[name][0] for domains in samples.values() if domains.get(name)]
        for row in rows[:_MEASURED] if domain.um_per_pixel is not None else []:
            width, height, window = sizes[row].tolist()
            scale = domain.um_per_pixel_of(min(width, height)) or 0.0
            chosen.setdefault(name, []).append((row, window * scale))
    return chosen


def find_copies(dataset: Dataset) -> list[tuple[int, list[str]]]:
    """Each picture that the archives hold more than once: the row of one copy, and the paths of all.

    Quarantined images are included.
    """
    images = dataset.table[dataset.table["duplicate_group"] != ""]
    groups = images.groupby("duplicate_group")
    return [
        (int(part.index[0]), sorted(part["path"]))
        for _, part in sorted(groups, key=lambda group: min(group[1]["path"]))
        if len(part) > 1
    ]


def warnings_about(dataset: Dataset) -> list[str]:
    """Warnings that belong before the pictures."""
    info = dataset.info
    found = [f"{name}: the cells are drawn, not photographed" for name, domain in info.domains.items() if domain.drawn]
    found += [
        f"{name}: um/px unknown, so its cells may be larger or smaller than those of the others"
        for name, domain in info.domains.items()
        if domain.um_per_pixel is None
    ]
    for domain, counts in count_classes(dataset).items():
        if not counts.all():
            found.append(f"{domain} holds no {', '.join(counts.index[counts == 0])}")
    pictured = {one.note for one in find_implausible(dataset.table)}  # these stand beside a picture
    return [*found, *(note for note in info.notes if note not in pictured)]
