"""Results of several runs as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from hemafast.experiments.crossdomain import NAME, cells_of
from hemafast.experiments.plan import Sweep
from hemafast.experiments.sweep import PAGE


def print_crossdomain(console: Console, result: Mapping[str, Any]) -> None:
    """Everything that `hemafast crossdomain` found, and where it lies."""
    _print_warnings(console, result)
    console.print(matrix_table(result))
    console.print(drop_table(result))
    if shortcuts := result["shortcuts"]:
        console.print(shortcut_table(shortcuts))
        console.print(Text(shortcuts["verdict"]))
    _print_failures(console, result)
    page = Path(result["settings"]["output"], f"{NAME}.html")
    console.print(str(page), highlight=False, markup=False, soft_wrap=True)


def print_sweep(console: Console, result: Mapping[str, Any], output: Path) -> None:
    """Everything that `hemafast sweep` found, and where it lies."""
    _print_warnings(console, result)
    console.print(sweep_table(result))
    for note in result["notes"]:
        console.print(Text(note))
    _print_failures(console, result)
    console.print(str(output / PAGE), highlight=False, markup=False, soft_wrap=True)


def _print_warnings(console: Console, result: Mapping[str, Any]) -> None:
    for warning in result["warnings"]:
        console.print(Text(warning, style="bold yellow"))


def _print_failures(console: Console, result: Mapping[str, Any]) -> None:
    if result["failures"]:
        console.print(failure_table(result["failures"]))


def matrix_table(result: Mapping[str, Any]) -> Table:
    """Macro-F1 over shared classes, then over all of the test domain: rows are what was trained on."""
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
    """How much is lost against the model of the test domain itself, on the same images."""
    table = Table(title="lost against the model of the test domain itself", title_justify="left")
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
    """How well domain and class are guessed without a look at a cell."""
    table = Table(title="what can be guessed without a look at the cell", title_justify="left")
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
    """Runs that came to no end, and why."""
    table = Table(title="failed", title_justify="left")
    for column in ("run", "reason"):
        table.add_column(column, overflow="fold")
    for name, reason in failures.items():
        table.add_row(Text(name), Text(reason))
    return table


def plan_table(sweep: Sweep) -> Table:
    """What a sweep is about to do."""
    table = Table(title=f"to be run: {sweep.headline}", title_justify="left")
    for column in ("experiment", "model"):
        table.add_column(column)
    for column in ("epochs", "px"):
        table.add_column(column, justify="right")
    table.add_column("state")
    for name in sweep.chosen:
        config = sweep.plans[name].config
        table.add_row(name, config.model, str(config.epochs), str(config.image_size), sweep.state(name))
    return table


def sweep_table(result: Mapping[str, Any]) -> Table:
    """Scores of each experiment beside the published ones."""
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
    """A score; nothing where there is none."""
    return "" if value is None else f"{value:.3f}"
