"""Results as tables and lines for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from hemafast.doctor.finding import Finding, Verdict
from hemafast.metrics import with_pooled
from hemafast.preparation.schema import QUARANTINE, DatasetInfo, QuarantinedImage
from hemafast.run_folder import RunSummary

if TYPE_CHECKING:
    from hemafast.experiments.plan import Sweep

_MOST_QUARANTINED = 20  # lines of a table; quarantine.csv has them all


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


def quarantine_table(images: Sequence[QuarantinedImage]) -> Table:
    """Quarantined images: file, verdict, reason."""
    shown = images[:_MOST_QUARANTINED]
    more = f"; {len(shown)} of {len(images)} shown, all in {QUARANTINE}" if len(shown) < len(images) else ""
    table = Table(title=f"quarantined{more}", title_justify="left")
    for column in ("file", "verdict", "reason"):
        table.add_column(column, overflow="fold")
    for image in shown:
        table.add_row(Text(image.file), image.kind, Text(image.reason))
    return table


def score_table(metrics: dict[str, Any]) -> Table:
    """Scores, by domain and pooled."""
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
    """Context of a score: initial weights, time, speed, warnings."""
    training = metrics["training"]
    lines = [f"started from {metrics['model']['started_from']}"]
    if epochs := training["epochs"]:
        lines.append(
            f"{epochs} {'epoch' if epochs == 1 else 'epochs'} in {training['total_seconds']:.0f} s, "
            f"{training['train_images_per_second']:.1f} images/s in training"
        )
    return lines + [f"[bold yellow]{warning}[/]" for warning in metrics["warnings"]]


def bench_table(result: dict[str, Any]) -> Table:
    """Rates and measurements of each station, and the ratio to plain PyTorch."""
    chosen, machine = result["bench"], result["machine"]
    table = Table(
        title=f"{chosen['model']}, {chosen['image_size']} px, {machine['precision']} on {machine['device']}; "
        f"{result['rounds']} rounds in turn after warm-up; median (min to max)",
        title_justify="left",
    )
    table.add_column("station")
    for column in ("images/s", "images/CPU-s", "page faults per step", "waiting for data", "against plain PyTorch"):
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
    """The speed of the machine, and of training if one part were free."""
    room, costs, whole = result["headroom"], result["costs"], result["stations"]["end to end"]
    products, copies = (result[name]["median"] / 1e9 for name in ("matrix_product_flops", "memory_copy_bytes"))
    flops, moved = costs["training_flops"] / 1e9, costs["training_bytes"] / 1e6
    rates = {
        "end to end": "end_to_end",
        "the step, if data were free": "step_with_free_data",
        "the data, if the step were free": "data_with_free_step",
        "decoding alone": "decode",
        f"arithmetic alone: {flops:,.2f} GFLOP per image at {products:,.0f} GFLOP/s as in matmul": "arithmetic",
        f"memory alone, nothing fused: {moved:,.0f} MB per image at {copies:,.0f} GB/s as in a copy": "memory",
    }
    peaks = [f"{whole[name] / 2**20:,.0f} MiB" for name in ("peak_memory", "peak_device_memory") if whole[name]]
    table = Table(title="headroom", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, key in rates.items():
        table.add_row(name, f"{room[key]:,.1f} images/s")
    table.add_row("peak memory, end to end", " and on the GPU ".join(peaks) or "unknown")
    return table


def change_table(comparison: Any) -> Table:
    """Ratios of the rates of two results (a bench.compare.Comparison), with intervals and verdicts."""
    table = Table(title="after / before, 95 % interval", title_justify="left")
    for column, justify in (("station", "left"), ("ratio", "right"), ("interval", "right"), ("verdict", "left")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for one in comparison.changes:
        table.add_row(one.station, f"{one.ratio:.3f}x", f"{one.low:.3f} to {one.high:.3f}", one.verdict)
    return table


def doctor_table(findings: Sequence[Finding]) -> Table:
    """Verdict, finding and remedy of each check."""
    told = Counter(finding.verdict for finding in findings)
    table = Table(title=", ".join(f"{told[verdict]} {verdict}" for verdict in Verdict), title_justify="left")
    for column in ("verdict", "check", "found", "remedy"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        verdict = Text(finding.verdict, style=f"bold {finding.verdict}")
        table.add_row(verdict, finding.name, Text(finding.found), Text(finding.remedy))
    return table


def spread(values: dict[str, float]) -> str:
    """A median with its extremes, and one decimal if it is below 100."""
    digits = 0 if values["median"] >= 100 else 1
    return f"{values['median']:,.{digits}f} ({values['min']:,.{digits}f} to {values['max']:,.{digits}f})"


def crossdomain_results(result: Mapping[str, Any]) -> Iterator[RenderableType]:
    """The results of `hemafast crossdomain`: warnings, scores, shortcuts, failures."""
    yield from _warnings(result)
    yield matrix_table(result)
    yield drop_table(result)
    if shortcuts := result["shortcuts"]:
        yield shortcut_table(shortcuts)
        yield Text(shortcuts["verdict"])
    yield from _failures(result)


def sweep_results(result: Mapping[str, Any]) -> Iterator[RenderableType]:
    """The results of `hemafast sweep`: warnings, scores, notes, failures."""
    yield from _warnings(result)
    yield sweep_table(result)
    yield from map(Text, result["notes"])
    yield from _failures(result)


def _warnings(result: Mapping[str, Any]) -> Iterator[Text]:
    for warning in result["warnings"]:
        yield Text(warning, style="bold yellow")


def _failures(result: Mapping[str, Any]) -> Iterator[Table]:
    if result["failures"]:
        yield failure_table(result["failures"])


def matrix_table(result: Mapping[str, Any]) -> Table:
    """Macro-F1 over shared classes, then over all classes of the test domain; a row per model."""
    from hemafast.experiments.crossdomain import cells_of  # not needed by commands that must start fast

    table = Table(title="macro-F1 on validation images of", title_justify="left", show_lines=True)
    table.add_column("trained on")
    for test in result["tested"]:
        table.add_column(Text(test["name"]), justify="right")
    cells = cells_of(result)
    for row in result["trained"]:
        found = [cells.get((row["name"], test["name"])) for test in result["tested"]]
        table.add_row(Text(row["name"]), *(_cell(cell) if cell else "failed" for cell in found))
    return table


def _cell(cell: Mapping[str, Any]) -> str:
    shared, every = cell["shared"], cell["every"]
    return (
        f"[bold]{estimate(shared['macro_f1'])}[/]\n{len(shared['classes'])} shared classes, {shared['images']:,} images"
        f"\n{estimate(every['macro_f1'])}\nall {len(every['classes'])} classes, {every['images']:,} images"
    )


def drop_table(result: Mapping[str, Any]) -> Table:
    """Macro-F1 lost against the model trained on the test domain, on the same images."""
    table = Table(title="macro-F1 lost against the model of the test domain", title_justify="left")
    for column in ("tested on", "trained on"):
        table.add_column(column)
    for column in ("its own model", "this model", "drop", "classes"):
        table.add_column(column, justify="right")
    for cell in result["cells"]:
        if drop := cell["drop"]:
            table.add_row(
                Text(cell["tested_on"]),
                Text(cell["trained_on"]),
                number(drop["in_domain"]),
                number(drop["here"]),
                estimate(drop["drop"]),
                str(len(drop["classes"])),
            )
    return table


def shortcut_table(shortcuts: Mapping[str, Any]) -> Table:
    """How well domain and class can be guessed without seeing the cell."""
    table = Table(title="guessed without seeing the cell", title_justify="left")
    for column in ("guessed", "from"):
        table.add_column(column)
    for column in ("balanced accuracy", "chance", "accuracy", "macro-F1", "images"):
        table.add_column(column, justify="right")
    guessed = {"domain": shortcuts["domain"]} | {f"class, {name}": of for name, of in shortcuts["label"].items()}
    for what, found in guessed.items():
        for way, guess in found["by"].items():
            table.add_row(
                Text(what),
                way,
                estimate(guess["balanced_accuracy"]),
                number(1 / found["classes"]),
                estimate(guess["accuracy"]),
                estimate(guess["macro_f1"]),
                f"{found['images']:,}",
            )
    return table


def failure_table(failures: Mapping[str, str]) -> Table:
    """Failed runs and the reasons."""
    table = Table(title="failed", title_justify="left")
    for column in ("run", "reason"):
        table.add_column(column, overflow="fold")
    for name, reason in failures.items():
        table.add_row(Text(name), Text(reason))
    return table


def plan_table(sweep: Sweep) -> Table:
    """The runs of a sweep, before it starts."""
    table = Table(title=f"planned: {sweep.headline}", title_justify="left")
    for column in ("experiment", "model"):
        table.add_column(column)
    for column in ("epochs", "px"):
        table.add_column(column, justify="right")
    table.add_column("state")
    for name in sweep.chosen:
        config = sweep.configs[name]
        table.add_row(name, config.model, str(config.epochs), str(config.image_size), sweep.state(name))
    return table


def sweep_table(result: Mapping[str, Any]) -> Table:
    """Scores of each experiment beside the published scores."""
    table = Table(title=result["headline"], title_justify="left")
    table.add_column("experiment")
    domains = [escape(name) for name in result["domains"]]
    for column in ("macro-F1", "published", *domains, "epochs", "px", "minutes", "images/s"):
        table.add_column(column, justify="right")
    for row in result["experiments"]:
        done = row["best_val_f1"] is not None
        score = estimate({"value": row["best_val_f1"], "ci95": row["ci95"]}) if done else row["status"]
        table.add_row(
            row["title"],
            score,
            f"{row['published']:.4f}",
            *(number(row["by_domain"].get(name)) for name in result["domains"]),
            str(row["epochs"]),
            str(row["image_size"]),
            f"{row['seconds'] / 60:.1f}" if done else "",
            f"{row['images_per_second']:.1f}" if done else "",
        )
    return table


def estimate(score: Mapping[str, Any]) -> str:
    """A score with its interval."""
    low, high = score["ci95"]
    if score["value"] is None:
        return "none"
    return number(score["value"]) + ("" if low is None else f" ({low:.3f} to {high:.3f})")


def number(value: float | None) -> str:
    """A score; empty if there is none."""
    return "" if value is None else f"{value:.3f}"


def run_table(runs: Sequence[RunSummary]) -> Table:
    """Runs with their data, progress and score."""
    table = Table()
    for column in ("run", "data", "model", "preset", "state"):
        table.add_column(column, overflow="fold")
    for column in ("epochs", "macro-F1", "95 % interval"):
        table.add_column(column, justify="right")
    table.add_column("began")
    for run in runs:
        low, high = run.ci95 or (None, None)
        table.add_row(
            Text(run.name),
            Text(run.data),
            Text(run.model),
            Text(run.preset),
            run.state,
            str(run.epochs_done) if run.epochs is None else f"{run.epochs_done} of {run.epochs}",
            number(run.macro_f1),
            "" if low is None else f"{low:.3f} to {high:.3f}",
            run.began.replace("T", " "),
        )
    return table
