"""Results as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from hemafast.metrics import with_pooled
from hemafast.prepare.schema import QUARANTINE, DatasetInfo, Refused

_MOST_REFUSED = 20  # lines of a table; quarantine.csv has them all


def dataset_table(info: DatasetInfo) -> Table:
    """Images of each domain, by split."""
    table = Table(title=f"{len(info.classes)} classes, fingerprint {info.fingerprint[:12]}", title_justify="left")
    table.add_column("domain")
    for column in ("train", "val", "converted", "quarantined", "files ignored", "um/px"):
        table.add_column(column, justify="right")
    for name, domain in info.domains.items():
        split = {split: sum(counts.get(name, {}).values()) for split, counts in info.counts.items()}
        table.add_row(
            Text(f"{name} (drawn)" if domain.drawn else name),
            *(str(images) for images in split.values()),
            str(domain.converted),
            str(domain.quarantined),
            str(domain.ignored),
            "unknown" if domain.um_per_pixel is None else str(domain.um_per_pixel),
        )
    return table


def quarantine_table(refused: Sequence[Refused]) -> Table:
    """What was left out and why: file, verdict, reason."""
    shown = refused[:_MOST_REFUSED]
    more = f"; {len(shown)} of {len(refused)} shown, all in {QUARANTINE}" if len(shown) < len(refused) else ""
    table = Table(title=f"quarantined{more}", title_justify="left")
    for column in ("file", "verdict", "reason"):
        table.add_column(column, overflow="fold")
    for image in shown:
        table.add_row(Text(image.file), image.kind, Text(image.reason))
    return table


def score_table(metrics: dict[str, Any]) -> Table:
    """Scores of each domain and pooled."""
    table = Table(title=f"{metrics['model']['backbone']}, validation images", title_justify="left")
    table.add_column("images of")
    for column in ("macro-F1", "95 % interval", "accuracy", "classes", "images"):
        table.add_column(column, justify="right")
    for name, scores in with_pooled(metrics["domains"], metrics["pooled"]).items():
        low, high = scores["ci95"]["macro_f1"]
        table.add_row(
            name,
            f"{scores['macro_f1']:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{scores['accuracy']:.3f}",
            str(scores["classes"]),
            str(scores["images"]),
        )
    return table


def training_lines(metrics: dict[str, Any]) -> list[str]:
    """What a score cannot be read without: where it started, how long it took, what to beware of."""
    training = metrics["training"]
    lines = [f"started from {metrics['model']['started_from']}"]
    if epochs := training["epochs"]:
        lines.append(
            f"{epochs} {'epoch' if epochs == 1 else 'epochs'} in {training['total_seconds']:.0f} s, "
            f"{training['train_images_per_second']:.1f} images/s in training"
        )
    return lines + [f"[bold yellow]{warning}[/]" for warning in metrics["warnings"]]


def bench_table(result: dict[str, Any]) -> Table:
    """Rates of each station, and the ratio to its plain counterpart."""
    chosen = result["bench"]
    table = Table(
        title=f"{chosen['model']}, {chosen['image_size']} px; {result['rounds']} rounds in turn; median (min to max)",
        title_justify="left",
    )
    table.add_column("station")
    for column in ("images/s", "images/CPU-s", "against plain PyTorch"):
        table.add_column(column, justify="right")
    for name, station in result["stations"].items():
        ratio = result["ratios"].get(name)
        table.add_row(
            name,
            spread(station["images_per_second"]),
            spread(station["images_per_cpu_second"]),
            f"{ratio['median']:.1f}x ({ratio['min']:.1f} to {ratio['max']:.1f})" if ratio else "",
        )
    return table


def spread(values: dict[str, float]) -> str:
    """A median with its extremes; a decimal where the numbers are small."""
    digits = 0 if values["median"] >= 100 else 1
    return f"{values['median']:,.{digits}f} ({values['min']:,.{digits}f} to {values['max']:,.{digits}f})"
