"""Results as tables and lines for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from hemafast.doctor.finding import Finding, Verdict
from hemafast.metrics import with_pooled
from hemafast.preparation.schema import QUARANTINE, Account, DatasetInfo, QuarantinedImage
from hemafast.preparation.split import WORDS
from hemafast.printable import printable
from hemafast.run_folder import RunSummary
from hemafast.words import counted

if TYPE_CHECKING:
    from hemafast.experiments.plan import Sweep

_MOST_TRIALS = 10  # that a terminal shows
_MOST_DROPS = 4  # columns of the matrix; with more, a table of all drops is longer than a screen, and the page has it
_MOST_QUARANTINED = 20  # lines of a table; quarantine.csv has them all


def _table(
    title: str | None,
    rows: Iterable[Sequence[Any]],
    left: Sequence[str] = (),
    right: Sequence[str] = (),
    last: Sequence[str] = (),
    *,
    overflow: Literal["fold", "ellipsis"] = "ellipsis",
    **style: Any,
) -> Table:
    """A table with columns aligned left, then right, then left again. Names are shown as they are."""
    table = Table(title=None if title is None else Text(printable(title)), title_justify="left", **style)
    for column in left:
        table.add_column(Text(printable(column)), overflow=overflow)
    for column in right:
        table.add_column(Text(printable(column)), justify="right")
    for column in last:
        table.add_column(Text(printable(column)))
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(printable(str(cell))) for cell in row))
    return table


def plan_tree(source: Path, plan: Mapping[str, Any]) -> Tree:
    """What would be taken from a source: domain, split, class, with the number of images."""
    tree = Tree(Text(f"{source}: {_counted(plan['found'], 'file')}"))
    for name, domain in plan["domains"].items():
        known = domain["um_per_pixel"]
        later = ", to be estimated" if domain["scale"] == "estimated" else ""
        scale = f"um/px unknown{later}" if known is None else f"{known:g} um/px"
        drawn = ", drawn cells" if domain["drawn"] else ""
        said = f"{name} ({domain['archive']}): {_counted(domain['images'], 'image')}, {scale}{drawn}"
        branch = tree.add(Text(said))
        for split, classes in domain["splits"].items():
            side = branch.add(Text(f"{split}: {_counted(sum(classes.values()), 'image')}"))
            for label, images in classes.items():
                side.add(Text(f"{label}: {images}"))
    if plan["passed_over"]:
        passed = sum(kind["files"] for kind in plan["passed_over"].values())
        branch = tree.add(Text(f"passed over: {_counted(passed, 'file')}"))
        for kind, files in plan["passed_over"].items():
            branch.add(Text(f"{kind}: {files['files']}, such as {', '.join(files['examples'])}"))
    return tree


def account_table(account: Account) -> Table:
    """What became of every file of a source; the rows add up to the files found."""
    rows = [(what, files, ", ".join(examples)) for what, files, examples in account.rows()]
    rows.append(("files found", account.found, ""))
    if not any(examples for *_, examples in rows):
        return _table("account", [row[:2] for row in rows], [""], ["files"])
    return _table("account", rows, [""], ["files"], ["examples"])


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def dataset_table(info: DatasetInfo) -> Table:
    """Images of each domain, by split."""
    rows = [
        (
            f"{name} (drawn)" if domain.drawn else name,
            *(sum(counts.get(name, {}).values()) for counts in info.counts.values()),
            domain.converted,
            domain.quarantined,
            domain.scale_words,
        )
        for name, domain in info.domains.items()
    ]
    columns = (*info.counts, "converted", "quarantined", "um/px")
    return _table(
        f"{counted(len(info.classes), 'class')}, fingerprint {info.fingerprint[:12]}", rows, ["domain"], columns
    )


def quarantine_table(images: Sequence[QuarantinedImage]) -> Table:
    """Quarantined images: file, verdict, reason."""
    shown = images[:_MOST_QUARANTINED]
    more = f"; {len(shown)} of {len(images)} shown, all in {QUARANTINE}" if len(shown) < len(images) else ""
    rows = [(image.file, image.kind, image.reason) for image in shown]
    return _table(f"quarantined{more}", rows, ("file", "verdict", "reason"), overflow="fold")


def score_table(metrics: dict[str, Any]) -> Table:
    """Scores, by domain and pooled."""
    rows = [
        (
            name,
            number(scores["macro_f1"]),
            ends(scores["ci95"]["macro_f1"]),
            number(scores["accuracy"]),
            scores["classes"],
            scores["images"],
        )
        for name, scores in with_pooled(metrics["domains"], metrics["pooled"]).items()
    ]
    columns = ("macro-F1", "95 % interval", "accuracy", "classes", "images")
    return _table(f"{metrics['model']['backbone']}, {WORDS[metrics['split']]} images", rows, ["images of"], columns)


def training_lines(metrics: dict[str, Any]) -> list[Text]:
    """Context of a score: initial weights, time, speed, warnings."""
    from hemafast.evaluate.folding import notes  # not needed by commands that must start fast

    training = metrics["training"]
    lines = [f"started from {metrics['model']['started_from']}"]
    if epochs := training["epochs"]:
        lines.append(
            f"{counted(epochs, 'epoch')} in {training['total_seconds']:.0f} s, "
            f"{training['train_images_per_second']:.1f} images/s in training"
        )
    if taught := training.get("teacher"):
        score = "not evaluated" if taught["macro_f1"] is None else f"macro-F1 {taught['macro_f1']:.3f}"
        lines.append(f"taught by {taught['model']} ({score}), a share of {taught['weight']:g} of the targets")
    lines += notes(metrics["folding"]) if "folding" in metrics else []
    if (look := metrics.get("look")) and look["number"] == 1:  # of a later one, a warning says so
        lines.append(look["told"])
    return [*map(Text, lines), *(Text(warning, style="bold yellow") for warning in metrics["warnings"])]


def bench_table(result: dict[str, Any]) -> Table:
    """Rates and measurements of each station, and the ratio to plain PyTorch."""
    chosen, machine, rows = result["bench"], result["machine"], []
    for name, station in result["stations"].items():
        ratio, waits = result["ratios"].get(name), station["data_wait_share"]["median"]
        unit = "" if station["unit"] == "images" else f" {station['unit']}"
        rows.append(
            (
                name,
                spread(station["images_per_second"]) + unit,
                spread(station["images_per_cpu_second"]),
                f"{station['page_faults_a_step']['median']:,.0f}",
                f"{waits:.1%}" if waits else "",
                f"{ratio['median']:.1f}x ({ratio['min']:.1f} to {ratio['max']:.1f})" if ratio else "",
            )
        )
    title = (
        f"{chosen['model']}, {chosen['image_size']} px, {machine['precision']} on {machine['device']}; "
        f"{result['rounds']} rounds in turn after warm-up; median (min to max)"
    )
    columns = ("images/s", "images/CPU-s", "page faults per step", "waiting for data", "against plain PyTorch")
    return _table(title, rows, ["station"], columns)


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
    rows = [(name, f"{room[key]:,.1f} images/s") for name, key in rates.items()]
    rows.append(("peak memory, end to end", " and on the GPU ".join(peaks) or "unknown"))
    return _table("headroom", rows, [""], [""], show_header=False)


def change_table(comparison: Any) -> Table:
    """Ratios of the rates of two results (a bench.compare.Comparison), with intervals and verdicts."""
    rows = [(one.station, f"{one.ratio:.3f}x", ends((one.low, one.high)), one.verdict) for one in comparison.changes]
    return _table("after / before, 95 % interval", rows, ["station"], ["ratio", "interval"], ["verdict"])


def doctor_table(findings: Sequence[Finding]) -> Table:
    """Verdict, finding and remedy of each check."""
    told = Counter(finding.verdict for finding in findings)
    rows = [(Text(one.verdict, style=f"bold {one.verdict}"), one.name, one.found, one.remedy) for one in findings]
    title = ", ".join(f"{told[verdict]} {verdict}" for verdict in Verdict)
    return _table(title, rows, ("verdict", "check", "found", "remedy"), overflow="fold")


def spread(values: dict[str, float]) -> str:
    """A median with its extremes, and one decimal if it is below 100."""
    digits = 0 if values["median"] >= 100 else 1
    return f"{values['median']:,.{digits}f} ({values['min']:,.{digits}f} to {values['max']:,.{digits}f})"


def crossdomain_results(result: Mapping[str, Any]) -> Iterator[RenderableType]:
    """The results of `hemafast crossdomain`: warnings, scores, what was left out, shortcuts, failures."""
    from hemafast.evaluate.folding import notes  # not needed by commands that must start fast

    shortcuts = result["shortcuts"]
    guesses: list[RenderableType] = [shortcut_table(shortcuts), Text(shortcuts["verdict"])] if shortcuts else []
    said = [*map(Text, result["notes"]), *map(Text, notes(result["folding"]))]
    drops = [drop_table(result)] if len(result["tested"]) <= _MOST_DROPS else []
    return _results(result, matrix_table(result), *said, Text(unseen_line(result)), *drops, *guesses)


def unseen_line(result: Mapping[str, Any]) -> str:
    """What to expect of a laboratory that no model has seen, and how to choose."""
    left_out = result["left_out"]
    if left_out is None:
        return "No domain was left out of a training and tested on: how a model does elsewhere is not known"
    return (
        f"elsewhere: {estimate(left_out)}, the mean of {counted(len(left_out['domains']), 'domain')}, each tested with "
        "the model of all others; choose settings by this number"
    )


def sweep_results(result: Mapping[str, Any]) -> Iterator[RenderableType]:
    """The results of `hemafast sweep`: warnings, scores, notes, failures."""
    return _results(result, sweep_table(result), *map(Text, result["notes"]))


def tune_results(result: Mapping[str, Any]) -> Iterator[RenderableType]:
    """The results of `hemafast tune`: warnings, the best trials, a caveat, failures."""
    ended = [trial for trial in result["trials"] if trial["macro_f1"] is not None]
    best = sorted(ended, key=lambda trial: (trial["state"] != "done", -trial["macro_f1"]))[:_MOST_TRIALS]
    rows = [
        (
            str(trial["trial"]),
            trial["state"],
            f"{trial['macro_f1']:.3f}",
            ", ".join(f"{name}={_short_value(value)}" for name, value in trial["settings"].items()),
        )
        for trial in best
    ]
    counted = Counter(trial["state"] for trial in result["trials"])
    title = ", ".join(f"{count} {state}" for state, count in counted.items()) or "no trial has ended yet"
    table = _table(title, rows, ("trial", "state"), ("macro-F1",), ("settings",), overflow="fold")
    return _results(result, table, *map(Text, [*_tested_lines(result), *result["notes"]]))


def _tested_lines(result: Mapping[str, Any]) -> Iterator[str]:
    if tested := result["test"]:
        score, trial = tested["macro_f1"], tested["trial"]
        images = counted(tested["images"], "test image")
        low_high = f"{ends(score['cells'])} for other cells"
        yield f"trial {trial} on {images}: macro-F1 {score['value']:.3f}, 95 % interval {low_high}"


def repeats_results(result: Mapping[str, Any]) -> Iterator[RenderableType]:
    """The results of `hemafast train --folds` or `--seeds`: warnings, runs, what the score is worth, failures."""
    rows = [
        (
            row["run"],
            row["status"],
            number(row["macro_f1"]),
            "" if row["ci95"][0] is None else ends(row["ci95"]),
            number(row["epoch_gain"]),
            "" if row["epochs"] is None else f"{row['best_epoch']} of {row['epochs']}",
            "" if row["images"] is None else row["images"],
            "" if row["seconds"] is None else f"{row['seconds'] / 60:.1f}",
        )
        for row in result["runs"]
    ]
    columns = ("macro-F1", "95 % interval", "epoch gain", "best epoch", "images", "minutes")
    table = _table(None, rows, ("run", "state"), columns)
    said = [*_certainty_lines(result), *result["notes"]]
    return _results(result, table, *map(Text, said))


def _certainty_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """Spread over the runs, and the score with its intervals."""
    spread, score = result["spread"], result["score"]
    if spread["runs"] > 1:
        yield (
            f"macro-F1 of {spread['runs']} runs: mean {spread['mean']:.3f}, standard deviation {spread['sd']:.3f}, "
            f"{spread['min']:.3f} to {spread['max']:.3f}"
        )
    if score is None or score["macro_f1"]["value"] is None:
        return
    f1, of = score["macro_f1"], "all folds together" if result["folds"] is not None else "mean of the seeds"
    yield f"macro-F1, {of}: {f1['value']:.3f}; 95 % interval for other cells {ends(f1['cells'])}"
    if f1["both"] is not None:
        yield (
            f"SD over {len(f1['by_pass'])} seeds {f1['sd']:.3f}; 95 % interval for other seeds {ends(f1['seeds'])}, "
            f"for other cells and other seeds {ends(f1['both'])}"
        )


def _short_value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _results(result: Mapping[str, Any], *parts: RenderableType) -> Iterator[RenderableType]:
    """Warnings, `parts`, and the failed runs with their reasons."""
    for warning in result["warnings"]:
        yield Text(warning, style="bold yellow")
    yield from parts
    if failures := result["failures"]:
        yield _table("failed", failures.items(), ("run", "reason"), overflow="fold")


def matrix_table(result: Mapping[str, Any]) -> Table:
    """Macro-F1 over shared classes: a row per model, a column per test domain, and the mean over unseen domains."""
    from hemafast.experiments.crossdomain import cells_of  # not needed by commands that must start fast

    cells, tested = cells_of(result), [test["name"] for test in result["tested"]]
    unseen = {mean["trained_on"]: mean for mean in result["unseen"]}
    rows = [
        (
            row["name"],
            *(_cell(cells.get((row["name"], name))) for name in tested),
            _mean(unseen.get(row["name"])),
        )
        for row in result["trained"]
    ]
    title = "macro-F1 over the classes that both have (of how many) on validation images of"
    narrow: dict[str, Any] = {"box": SIMPLE_HEAD, "padding": 0, "pad_edge": False, "leading": 1}
    return _table(title, rows, ["trained on"], (*tested, "unseen"), overflow="fold", **narrow)


def _cell(cell: Mapping[str, Any] | None) -> Text:
    return Text("failed") if cell is None else _stacked(cell["shared"]["macro_f1"], len(cell["shared"]["classes"]))


def _mean(mean: Mapping[str, Any] | None) -> Text:
    return Text("") if mean is None else _stacked(mean["macro_f1"])


def _stacked(score: Mapping[str, Any], classes: int | None = None) -> Text:
    """A score, its interval and the number of classes, one below the other: seven columns fit a terminal."""
    low, high = score["ci95"]
    interval = "" if low is None else f"\n{low:.2f}-{high:.2f}".replace("0.", ".")
    of = "" if classes is None else f"\nof {classes}"
    return Text.assemble((number(score["value"]) or "none", "bold"), interval, of)


def drop_table(result: Mapping[str, Any]) -> Table:
    """Macro-F1 lost against the model trained on the test domain, on the same images."""
    rows = [
        (
            cell["tested_on"],
            cell["trained_on"],
            number(drop["in_domain"]),
            number(drop["here"]),
            estimate(drop["drop"]),
            len(drop["classes"]),
        )
        for cell in result["cells"]
        if (drop := cell["drop"])
    ]
    columns = ("its own model", "this model", "drop", "classes")
    return _table("macro-F1 lost against the model of the test domain", rows, ("tested on", "trained on"), columns)


def shortcut_table(shortcuts: Mapping[str, Any]) -> Table:
    """How well domain and class can be guessed without seeing the cell."""
    guessed = {"domain": shortcuts["domain"]} | {f"class, {name}": of for name, of in shortcuts["label"].items()}
    rows = [
        (
            what,
            way,
            estimate(guess["balanced_accuracy"]),
            number(1 / found["classes"]),
            estimate(guess["accuracy"]),
            estimate(guess["macro_f1"]),
            f"{found['images']:,}",
        )
        for what, found in guessed.items()
        for way, guess in found["by"].items()
    ]
    columns = ("balanced accuracy", "chance", "accuracy", "macro-F1", "images")
    return _table("guessed without seeing the cell", rows, ("guessed", "from"), columns)


def plan_table(sweep: Sweep) -> Table:
    """The runs of a sweep, before it starts."""
    rows = [
        (name, config.model, config.epochs, config.image_size, sweep.state(name))
        for name, config in ((name, sweep.configs[name]) for name in sweep.chosen)
    ]
    return _table(f"planned: {sweep.headline}", rows, ("experiment", "model"), ("epochs", "px"), ["state"])


def sweep_table(result: Mapping[str, Any]) -> Table:
    """Scores of each experiment beside the published scores."""
    rows = []
    for row in result["experiments"]:
        done = row["best_val_f1"] is not None
        rows.append(
            (
                row["title"],
                estimate({"value": row["best_val_f1"], "ci95": row["ci95"]}) if done else row["status"],
                f"{row['published']:.4f}",
                *(number(row["by_domain"].get(name)) for name in result["domains"]),
                row["epochs"],
                row["image_size"],
                f"{row['seconds'] / 60:.1f}" if done else "",
                f"{row['images_per_second']:.1f}" if done else "",
            )
        )
    columns = ("macro-F1", "published", *result["domains"], "epochs", "px", "minutes", "images/s")
    return _table(result["headline"], rows, ["experiment"], columns)


def estimate(score: Mapping[str, Any]) -> str:
    """A score with its interval."""
    if score["value"] is None:
        return "none"
    return number(score["value"]) + ("" if score["ci95"][0] is None else f" ({ends(score['ci95'])})")


def number(value: float | None) -> str:
    """A score; empty if there is none."""
    return "" if value is None else f"{value:.3f}"


def ends(interval: Sequence[float]) -> str:
    """The ends of an interval."""
    return "{:.3f} to {:.3f}".format(*interval)


def run_table(runs: Sequence[RunSummary]) -> Table:
    """Runs with their data, progress and score."""
    rows = [
        (
            run.name,
            run.data,
            run.model,
            run.preset,
            run.state,
            run.epochs_done if run.epochs is None else f"{run.epochs_done} of {run.epochs}",
            number(run.macro_f1),
            "" if run.ci95 is None or run.ci95[0] is None else ends(run.ci95),
            run.began.replace("T", " "),
        )
        for run in runs
    ]
    columns = ("run", "data", "model", "preset", "state")
    return _table(None, rows, columns, ("epochs", "macro-F1", "95 % interval"), ["began"], overflow="fold")
