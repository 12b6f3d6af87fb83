"""Results as tables for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from hemafast.doctor.finding import Finding, Verdict
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
    """Rates of each station, what else was seen there, and the ratio to its plain counterpart."""
    chosen, machine = result["bench"], result["machine"]
    table = Table(
        title=f"{chosen['model']}, {chosen['image_size']} px, {machine['precision']} on {machine['device']}; "
        f"{result['rounds']} rounds in turn after a warm-up; median (min to max)",
        title_justify="left",
    )
    table.add_column("station")
    for column in ("images/s", "images/CPU-s", "page faults a step", "waits for data", "against plain PyTorch"):
        table.add_column(column, justify="right")
    for name, station in result["stations"].items():
        ratio, waits = result["ratios"].get(name), station["data_wait_share"]["median"]
        unit = "" if station["unit"] == "images" else f" {station['unit']}"
        table.add_row(
            name,
            spread(station["images_per_second"]) + unit,
            spread(station["images_per_cpu_second"]),
            f"{station['page_faults_a_step']['median']:,.0f}",
            f"{waits:.1%}" if waits else "",
            f"{ratio['median']:.1f}x ({ratio['min']:.1f} to {ratio['max']:.1f})" if ratio else "",
        )
    return table


def headroom_table(result: dict[str, Any]) -> Table:
    """What the machine can do, and what training would reach if one thing cost nothing."""
    room, costs, whole = result["headroom"], result["costs"], result["stations"]["end to end"]
    products, copies = (result[name]["median"] / 1e9 for name in ("matrix_product_flops", "memory_copy_bytes"))
    flops, moved = costs["training_flops"] / 1e9, costs["training_bytes"] / 1e6
    rates = {
        "end to end": "end_to_end",
        "the step, if data were free": "step_with_free_data",
        "the data, if the step were free": "data_with_free_step",
        "decoding alone": "decode",
        f"arithmetic alone: {flops:,.2f} GFLOP an image at {products:,.0f} GFLOP/s of a matrix product": "arithmetic",
        f"memory alone, nothing fused: {moved:,.0f} MB an image at {copies:,.0f} GB/s of a copy": "memory",
    }
    peaks = [f"{whole[name] / 2**20:,.0f} MiB" for name in ("peak_memory", "peak_device_memory") if whole[name]]
    table = Table(title="headroom", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, key in rates.items():
        table.add_row(name, f"{room[key]:,.1f} images/s")
    table.add_row("peak memory, end to end", " and on the GPU ".join(peaks) or "not told here")
    return table


def change_table(comparison: Any) -> Table:
    """Ratios of rates of two results (a bench.compare.Comparison), with intervals and verdicts."""
    table = Table(title="after / before, 95 % interval", title_justify="left")
    for column, justify in (("station", "left"), ("ratio", "right"), ("interval", "right"), ("verdict", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for one in comparison.changes:
        table.add_row(one.station, f"{one.ratio:.3f}x", f"{one.low:.3f} to {one.high:.3f}", one.verdict)
    return table


def doctor_table(findings: Sequence[Finding]) -> Table:
    """Verdict, what was found, and the remedy of each check."""
    told = Counter(finding.verdict for finding in findings)
    table = Table(title=", ".join(f"{told[verdict]} {verdict}" for verdict in Verdict), title_justify="left")
    for column in ("verdict", "check", "found", "remedy"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        verdict = Text(finding.verdict, style=f"bold {finding.verdict}")
        table.add_row(verdict, finding.name, Text(finding.found), Text(finding.remedy))
    return table


def spread(values: dict[str, float]) -> str:
    """A median with its extremes; a decimal where the numbers are small."""
    digits = 0 if values["median"] >= 100 else 1
    return f"{values['median']:,.{digits}f} ({values['min']:,.{digits}f} to {values['max']:,.{digits}f})"
