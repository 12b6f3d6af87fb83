"""Write the tables of the documentation from benchmarks/results and from the code, so that no figure is typed by hand.

python tools/render_readme.py           # write
python tools/render_readme.py --check   # exit 1 if a page is out of date
"""

from __future__ import annotations

import inspect
import itertools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from hemafast.cli.tables import spread
from hemafast.data import augment
from hemafast.prepare.verify import POLICIES
from hemafast.presets import PRESETS

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import loaders  # a script beside the package, not a part of it

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    page for pattern in ("*.md", "docs/*.md", "hemafast/*/*.md", "*/README.md") for page in ROOT.glob(pattern)
)
"""Pages with tables of this script; the other pages of benchmarks/ have scripts of their own."""
RESULTS = ROOT / "benchmarks" / "results"

FULL = {"Acevedo_20": 14_291, "Matek_19": 18_321}
"""Images of the whole challenge archives."""
FULL_GB = 11.2
"""Their size: 0.24 GB of JPEG and about 11 GB of TIFF."""


def render(text: str) -> str:
    """A page with every block `<!-- table: NAME -->` ... `<!-- end -->` filled from its result file or the code."""

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        if name in TABLES_OF_CODE:
            table = TABLES_OF_CODE[name]()
        else:
            file = RESULTS / f"{name.removesuffix('_short')}.json"
            table = TABLES[name](json.loads(file.read_text(encoding="utf-8")))
        return f"<!-- table: {name} -->\n{table}\n<!-- end -->"

    return re.sub(r"<!-- table: (?P<name>\w+) -->.*?<!-- end -->", fill, text, flags=re.DOTALL)


def quick_table(result: dict[str, Any]) -> str:
    """Scores of the quick preset on real archives."""
    metrics = result["metrics"]
    rows = [
        f"| {name} | **{part['macro_f1']:.3f}** | {' to '.join(f'{end:.3f}' for end in part['ci95']['macro_f1'])} "
        f"| {part['accuracy']:.3f} | {part['classes']} | {part['images']} |"
        for name, part in (*metrics["domains"].items(), ("pooled", metrics["pooled"]))
    ]
    training, data = metrics["training"], metrics["data"]
    images = sum(domain["images"] for domain in data["domains"].values())
    return "\n".join(
        [
            "| validation images of | macro-F1 | 95 % interval | accuracy | classes | images |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            f"`{result['prepared_by']}` and `{result['command']}` on {images:,} real images "
            f"({', '.join(data['domains'])}; {100 * data['val_fraction']:.0f} % validation, split seed "
            f"{data['split_seed']}, training seed {training['seed']}), started from "
            f"{metrics['model']['started_from']}. Preparation "
            f"{result['prepare_seconds']:.0f} s; {training['epochs']} epochs in {training['total_seconds']:.0f} s, "
            f"validation included; {training['train_images_per_second']:.0f} images/s. {_machine(result['machine'])}.",
        ]
    )


SHOWN = ("augment, basic", "loader, files", "loader, torchvision", "step", "step, plain PyTorch", "end to end")
"""Stations that the first page shows."""


def bench_short_table(result: dict[str, Any]) -> str:
    """Rates of those stations that have a plain counterpart, and what training is bound by."""
    rows = []
    for name in SHOWN:
        station, ratio = result["stations"][name], result["ratios"].get(name)
        rate, per_cpu = station["images_per_second"], station["images_per_cpu_second"]
        against = _gain(ratio, 1) if ratio else ""
        rows.append(f"| {name} | {spread(rate)} | {spread(per_cpu)} | {against} |")
    return "\n".join(
        [
            "| station | images/s | images per CPU-second | against plain PyTorch |",
            "|---|---|---|---|",
            *rows,
            "",
            _bench_circumstances(result),
            "",
            f"> {result['bound_by']}",
        ]
    )


def bench_table(result: dict[str, Any]) -> str:
    """All stations of `hemafast bench`, and the headroom."""
    rows = []
    for name, station in result["stations"].items():
        unit = "" if station["unit"] == "images" else f" {station['unit']}"
        waits = station["data_wait_share"]["median"]
        rows.append(
            f"| {name} | {spread(station['images_per_second'])}{unit} | {spread(station['images_per_cpu_second'])} "
            f"| {station['page_faults_a_step']['median']:,.0f} | {f'{waits:.1%}' if waits else ''} |"
        )
    room, costs, whole = result["headroom"], result["costs"], result["stations"]["end to end"]
    flops, moved = costs["training_flops"] / 1e9, costs["training_bytes"] / 1e6
    products, copies = (result[name]["median"] / 1e9 for name in ("matrix_product_flops", "memory_copy_bytes"))
    return "\n".join(
        [
            "| station | images/s | images per CPU-second | page faults a step | waits for data |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"Headroom in images/s: end to end {room['end_to_end']:,.1f}; if data were free "
            f"{room['step_with_free_data']:,.1f}; if the step were free {room['data_with_free_step']:,.0f}; decoding "
            f"alone {room['decode']:,.0f}; arithmetic alone {room['arithmetic']:,.1f} "
            f"({flops:,.2f} GFLOP an image, a matrix product at {products:,.0f} GFLOP/s); memory alone "
            f"{room['memory']:,.1f} ({moved:,.0f} MB an image if nothing is fused, a copy at {copies:,.0f} GB/s). "
            f"Peak memory of the process that trains: {whole['peak_memory'] / 2**20:,.0f} MiB.",
            "",
            _bench_circumstances(result),
            "",
            f"> {result['bound_by']}",
        ]
    )


def _bench_circumstances(result: dict[str, Any]) -> str:
    chosen = result["bench"]
    return (
        f"`hemafast bench` ({chosen['model']}, {chosen['image_size']} px, batch {chosen['batch_size']}; loaders: "
        f"batch {chosen['loader_batch_size']}), real images of {' and '.join(result['data']['domains'])}, "
        f"{result['rounds']} rounds in turn, median (min to max). {_machine(result['machine'])}."
    )


def policies_table() -> str:
    """What prepare does with each kind of image."""
    rows = [f"| {kind} | {policy.action} | {policy.meaning} |" for kind, policy in POLICIES.items()]
    return "\n".join(["| kind | what happens | what it is |", "|---|---|---|", *rows])


PURPOSES = {
    "seed": "the default: the reference's augmentation",
    "basic": "cells have no up, and lie anywhere",
    "strong": "much data, long training",
    "lineage": "stains that vary, chromatin that stays readable",
    "none": "validation",
}


def augmentation_table() -> str:
    """What each policy draws, by the fields of it that are not at their defaults."""
    return "\n".join(
        [
            "| policy | for | what it draws |",
            "|---|---|---|",
            *(f"| `{name}` | {PURPOSES[name]} | {_draws(policy)} |" for name, policy in augment.POLICIES.items()),
        ]
    )


def _draws(policy: augment.Policy) -> str:
    symmetries = {"mirror": "left and right swapped half the time", "eight": "one of the eight flips and quarter turns"}
    low, high = policy.crop_area or (0, 0)
    said = {
        f"a window of {100 * low:.0f} to {100 * high:.0f} % of the square, scaled to the view": policy.crop_area,
        "a window of 7/8 of the side, anywhere in the square": policy.shift,
        f"{100 * policy.zoom:.0f} % larger or smaller": policy.zoom,
        symmetries.get(policy.symmetry, ""): policy.symmetry != "none",
        f"up to {policy.rotation:g} degrees of rotation": policy.rotation,
        f"RandAugment({policy.randaugment_ops}, {policy.randaugment_magnitude})": policy.randaugment_ops,
        f"stains by {100 * policy.stain:.0f} %": policy.stain,
        f"a rectangle erased in {100 * policy.erase:.0f} % of the images": policy.erase,
    }
    return ", ".join(text for text, does in said.items() if does) or "nothing: the window in the middle"


def loaders_table(result: dict[str, Any]) -> str:
    """Rates of all loaders, by task, and what ours does against each."""
    ratios = {(ratio["of"], ratio["to"]): ratio for ratio in result["ratios"]}
    rows = []
    for task, (sides, ours) in _tasks(result).items():
        rows.append(f"| **{task}** | | | |")
        for side in sides:
            rates, ratio = result["sides"][side], ratios.get((ours, side))
            against = "" if ratio is None else f"{ratio['median']:.1f}x ({ratio['min']:.1f} to {ratio['max']:.1f})"
            rows.append(
                f"| {loaders.NAMES[side]} | {spread(rates['images_per_second'])} "
                f"| {spread(rates['images_per_cpu_second'])} | {against} |"
            )
    return "\n".join(
        [
            "| | images/s | images per CPU-second | ours is faster by |",
            "|---|---|---|---|",
            *rows,
            "",
            f"Views of 224 px in batches of {result['batch']}, {result['threads']} threads or workers each, "
            f"{result['images']:,} real images of {result['archive']}, {result['rounds']} rounds in turn, "
            "median (min to max). "
            f"{_machine(result['machine'])}, {_versions(result['machine'])}. "
            "The last column compares the first of our sides in each part, paired by round.",
            "",
            *_claims(ratios),
        ]
    )


def loaders_short_table(result: dict[str, Any]) -> str:
    """The loader against its best peer at each task."""
    ratios = {(ratio["of"], ratio["to"]): ratio for ratio in result["ratios"]}
    pairs = (
        ("JPEG, random resized crop and flip", "hemafast_files", _best(result, "ffcv_jpeg")),
        ("stored pixels, random resized crop and flip", "hemafast_packed_resized", "ffcv_raw"),
        ("stored pixels, crop alone", "hemafast_packed_crop", "ffcv_raw_crop"),
        ("stored pixels, crop and symmetries (FFCV: one flip)", "hemafast_packed", "ffcv_raw_crop_flip"),
        ("the reference's augmentation, from JPEG", "hemafast_seed_files", "torchvision_reference"),
        ("the reference's augmentation, from stored pixels", "hemafast_seed_packed", "torchvision_reference"),
    )
    rows = [
        f"| {task} | {spread(result['sides'][ours]['images_per_second'])} | {loaders.NAMES[theirs].partition(':')[0]} "
        f"| {spread(result['sides'][theirs]['images_per_second'])} | **{ratio['median']:.1f}x** "
        f"({ratio['min']:.1f} to {ratio['max']:.1f}) |"
        for task, ours, theirs in pairs
        if (ratio := ratios.get((ours, theirs))) is not None
    ]
    return "\n".join(
        [
            "| views of 224 px | hemafast, images/s | best peer | images/s | |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"`benchmarks/loaders.py`, {result['rounds']} rounds in turn, median (min to max); all "
            f"{len(result['sides'])} sides follow.",
        ]
    )


def _best(result: dict[str, Any], default: str) -> str:
    """The fastest peer from JPEG."""
    rates = {
        side: result["sides"][side]["images_per_second"]["median"]
        for sides in loaders.TASKS.values()
        for side in sides
        if "hemafast_files" in sides and side != "hemafast_files" and side in result["sides"]
    }
    return max(rates, key=lambda side: rates[side], default=default)


def _tasks(result: dict[str, Any]) -> dict[str, tuple[list[str], str]]:
    """Of each task: the sides that were run, and which of ours the others are compared with."""
    groups = {task: [side for side in sides if side in result["sides"]] for task, sides in loaders.TASKS.items()}
    return {
        task: (sides, next(side for side in sides if side.startswith("hemafast"))) for task, sides in groups.items()
    }


def _claims(ratios: dict[tuple[str, str], dict[str, float]]) -> list[str]:
    said = {
        "crop and eight symmetries from packed pixels against the reference's loader from JPEG": (
            "hemafast_packed",
            "torchvision_reference",
        ),
        "the reference's augmentation from JPEG, against the reference": (
            "hemafast_seed_files",
            "torchvision_reference",
        ),
        "the reference's augmentation from packed pixels, against the reference": (
            "hemafast_seed_packed",
            "torchvision_reference",
        ),
        "random resized crop and flip from stored pixels, against FFCV": ("hemafast_packed_resized", "ffcv_raw"),
        "crop alone from stored pixels, against FFCV": ("hemafast_packed_crop", "ffcv_raw_crop"),
        "crop and eight symmetries, as a share of copying as many bytes in memory": ("hemafast_packed", "memory_copy"),
    }
    return [f"- {text}: {_gain(ratio)}" for text, pair in said.items() if (ratio := ratios.get(pair)) is not None]


def _versions(facts: dict[str, str]) -> str:
    names = ("torchvision", "timm", "webdataset", "spdl", "litdata", "ffcv")
    return ", ".join(f"{name} {facts[name]}" for name in names if name in facts)


def scaling_table(result: dict[str, Any]) -> str:
    """How loader and step grow with images, pixels, threads and ranks: the ends of each series, and what fits them."""
    rows = []
    for axis in result["axes"].values():
        for name, series in axis["series"].items():
            first, last = series["points"][0], series["points"][-1]
            ends = " | ".join(f"{point['at']:,}: {spread(point['value'])}" for point in (first, last))
            rows.append(f"| {name} | {axis['quantity']} | {ends} | {_scaled(axis, series)} |")
    small, size = result["small_image_size"], result["image_size"]
    return "\n".join(
        [
            "| | | at the least | at the most | what fits |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"`{result['command']}`, {result['model']}, {result['precision']}, batch {result['batch_size']} "
            f"(loader alone: {result['loader_batch_size']}), policy `{result['policy']}`, "
            f"{result['images']:,} real training images of {' and '.join(result['domains'])} (more: the same ones "
            f"again). Epochs at {small} px, threads and ranks at {size} px; a rank has one thread. "
            f"{result['rounds']} rounds in turn, median (min to max). {_machine(result['machine'])}.",
        ]
    )


def _scaled(axis: dict[str, Any], series: dict[str, Any]) -> str:
    """The power of what grew, and the line or the efficiency at the end; nothing of a single point."""
    if "exponent" not in series:
        return ""
    power = f"to the power {series['exponent']['median']:.2f}"
    if "efficiency" in series:
        return f"{power}; efficiency {_percentages(series['efficiency'][-1])}"
    line = series["line"]
    return f"{power}; {line['fixed']['median']:.3g} + {line['each']['median']:.3g} x {axis['unit']}"


def prepare_table(result: dict[str, Any]) -> str:
    """What preparing costs beside decoding alone, and how it grows."""
    speed = [
        f"| {domain} | {name} | {spread(side['images_per_second'])} | {spread(side['images_per_cpu_second'])} "
        f"| {_percent(part['shares'].get(name))} |"
        for domain, part in result["speed"].items()
        for name, side in part["sides"].items()
    ]
    counts = " and ".join(
        f"{part['images']:,} of {domain}"
        + (f", {part['originals']} with their turns and flips" if part["images"] > part["originals"] else "")
        for domain, part in result["speed"].items()
        if domain in FULL
    )
    compared = result["comparison"]
    growth = [
        f"| {part['images']:,} | {part['seconds']:.1f} | {1000 * part['cpu_seconds'] / part['images']:.1f} "
        f"| {part['peak_memory_mb']:,.0f} | {part['seconds_again']:.1f} |"
        for part in result["growth"]
    ]
    return "\n".join(
        [
            "| images of | | images/s | images per CPU-second | prepare reaches |",
            "|---|---|---|---|---|",
            *speed,
            "",
            f"Real images ({counts}), packed at 256 px; {result['rounds']} rounds in turn, "
            f"median (min to max). {_machine(result['machine'])}.",
            "",
            "| images | seconds, imports included | CPU milliseconds an image | peak memory, MB | a second call, s |",
            "|---|---|---|---|---|",
            *growth,
            "",
            "Real images turned, flipped, enlarged and encoded again, so that no two are alike; one process each. "
            f"Comparing {compared['images']:,} perceptual hashes, each with each, takes {compared['seconds']:.1f} s.",
            "",
            _projection(result),
        ]
    )


def _percent(share: dict[str, float] | None) -> str:
    if share is None:
        return ""
    low, high = 100 * share["min"], 100 * share["max"]
    return f"**{100 * share['median']:.0f} %** ({low:.0f} to {high:.0f}) of it"


def _projection(result: dict[str, Any]) -> str:
    """What the whole archives would take at the measured rates."""
    seconds = {
        domain: images / result["speed"][domain]["sides"]["prepare"]["images_per_second"]["median"]
        for domain, images in FULL.items()
    }
    parts = ", ".join(f"{domain} {value:.0f} s" for domain, value in seconds.items())
    disk = FULL_GB + sum(FULL.values()) * 3 * 256**2 / 1e9
    return (
        f"> **Projection**, not a measurement: the full archives ({sum(FULL.values()):,} images, {FULL_GB:.0f} GB) at "
        f"these rates would take {sum(seconds.values()) / 60:.1f} minutes on this machine ({parts}), if the disk keeps "
        f"up, and {disk:.0f} GB of disk."
    )


def field_of_view_table(result: dict[str, Any]) -> str:
    """Scores of trainings on whole images and on a physical field of view."""
    runs, rows = result["runs"], []
    seeds = len({run["seed"] for run in runs})
    for split, domain in (("usual", "Acevedo_20"), ("usual", "Matek_19"), ("held out", result["holdout"])):
        cells = []
        for field in ("whole", "25"):
            scores = [
                run["domains"][domain]["macro_f1"]
                for run in runs
                if (run["split"], run["field_of_view"]) == (split, field)
            ]
            listed = ", ".join(f"{score:.3f}" for score in scores)
            cells.append(f"**{sum(scores) / len(scores):.3f}** ({listed})")
        some = next(run for run in runs if run["split"] == split)["domains"][domain]
        asked = "held out as a whole" if split == "held out" else "usual split"
        rows.append(f"| {domain}, {asked} | {some['images']} | {some['classes']} | {' | '.join(cells)} |")
    return "\n".join(
        [
            "| macro-F1 on validation images of | images | classes | whole image | central 25 um |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"Mean of {seeds} training seeds (each of them in brackets), `--preset {result['preset']}`, real images, "
            f"split seed 42, `{result['prepared_by']}`. {_machine(result['machine'])}.",
        ]
    )


def presets_table() -> str:
    """What the docstrings of the presets say."""
    rows = []
    for name, preset in PRESETS.items():
        first, _, rest = inspect.cleandoc(preset.__doc__ or "").partition("\n")
        lines = dict(line.split(": ", 1) for line in rest.strip().splitlines())
        rows.append(f"| `{name}` | {first} | {lines['Time']} | {lines['Score']} |")
    return "\n".join(["| preset | what it is | time | macro-F1 |", "|---|---|---|---|", *rows])


def train_step_table(result: dict[str, Any]) -> str:
    """Training steps of every side, network by network."""
    rows = []
    for model, found in result["models"].items():
        for side, rate in found["images_per_second"].items():
            ratio = found["ratios"].get(side)
            share = found["share_of_matrix_product"][side]["median"]
            beside = _gain(ratio) if ratio else ""
            per_cpu = found["images_per_cpu_second"][side]
            rows.append(f"| {model} | {side} | {spread(rate)} | {spread(per_cpu)} | {share:.0%} | {beside} |")
    return "\n".join(
        [
            "| network | step of | images/s | images per CPU-second | of the matrix product | hemafast against it |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            f"`{result['command']}`, {result['precision']}, {result['image_size']} px, equal maths, in turn, median "
            f"(min to max); the share is that of the FLOP/s of a large matrix product in the same minutes. "
            f"{_machine(result['machine'])}.",
            "",
            *(_where_time_goes(model, found["shares_of_time"]) for model, found in result["models"].items()),
        ]
    )


def depthwise_table(result: dict[str, Any]) -> str:
    """Training steps with our gradients of depthwise convolutions and with oneDNN's."""
    rows = []
    for name, found in result["cases"].items():
        rates, costs, gain = found["images_per_second"], found["images_per_cpu_second"], found["ratio"]
        alone = [one["ratio"]["median"] for one in found["convolutions"]]
        number = sum(one["number"] for one in found["convolutions"])
        rows.append(
            f"| {name} | {spread(rates['own'])} | {spread(rates['oneDNN'])} "
            f"| {_gain(gain)} "
            f"| {costs['own']['median']:.1f} / {costs['oneDNN']['median']:.1f} "
            f"| {number}: {min(alone):.1f} to {max(alone):.1f}x |"
        )
    return "\n".join(
        [
            "| network | ours, images/s | oneDNN's, images/s | step | images per CPU-second | the gradients alone |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            f"`{result['command']}`, fp32, whole training steps, in turn, median (min to max); the last column counts "
            f"the convolutions, and how many times as long oneDNN takes. {_machine(result['machine'])}.",
        ]
    )


def folding_table(result: dict[str, Any]) -> str:
    """Steps in which convolutions do the work of batch norms, and steps in which they do not."""
    rows = []
    for found in result["cases"]:
        rates, costs, gain = found["images_per_second"], found["images_per_cpu_second"], found["ratio"]
        rows.append(
            f"| {found['step']} | {found['network']} | {spread(rates['folded'])} | {spread(rates['apart'])} "
            f"| {_gain(gain)} "
            f"| {costs['folded']['median']:.1f} / {costs['apart']['median']:.1f} |"
        )
    return "\n".join(
        [
            "| step | network | folded, images/s | apart, images/s | ratio | images per CPU-second |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            f"`{result['command']}`, fp32, in turn, median (min to max). {_machine(result['machine'])}.",
        ]
    )


def _where_time_goes(model: str, shares: dict[str, float]) -> str:
    return f"- {model}, by torch's profiler: {', '.join(f'{kind} {share:.0%}' for kind, share in shares.items())}."


def end_to_end_table(result: dict[str, Any]) -> str:
    """What a whole epoch reaches of its bare steps."""
    found, images = result["summary"], result["images"]
    said = {
        "training within the run, of the bare training step": _percentages(found["training_share"]),
        "whole epoch (data, training, validation, checkpoints, logs), of the bare steps": _percentages(
            found["whole_share"]
        ),
        "of the time of training: waiting for data": _percentages(found["data_wait_share"]),
        "seconds from the start of the process to the end of its first step": spread(result["first_step_seconds"]),
    }
    return "\n".join(
        [
            "| | median (min to max) |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in said.items()),
            "",
            f"`{result['command']}`, {result['precision']}, {result['image_size']} px, batch "
            f"{result['batch_size']}, {images['train']} "
            f"training and {images['val']} validation images of {' and '.join(result['domains'])}. "
            f"{_machine(result['machine'])}.",
        ]
    )


def scores_table(result: dict[str, Any]) -> str:
    """What the scores of many resamples cost."""
    ours, theirs, ratio = result["seconds"]["hemafast"], result["seconds"]["scikit-learn"], result["ratio"]
    return (
        f"All scores of {result['images']:,} images in {result['classes']} classes with {result['resamples']:,} "
        f"resamples take **{ours['median']:.2f} s** ({ours['min']:.2f} to {ours['max']:.2f}); scikit-learn, at its "
        f"pace over {result['resamples_of_scikit_learn']} resamples, {theirs['median']:.0f} s: "
        f"{_gain(ratio, 0)}. `{result['command']}`, "
        f"{_machine(result['machine'])}."
    )


def crossdomain_table(result: dict[str, Any]) -> str:
    """What models of one domain make of another, and what can be guessed without a look at the cell."""
    found = result["found"]
    cells = {(cell["trained_on"], cell["tested_on"]): cell for cell in found["cells"]}
    tested = [test["name"] for test in found["tested"]]
    rows = [
        f"| {row['name']} | {row['images']:,} | {' | '.join(_shared(cells[row['name'], test]) for test in tested)} |"
        for row in found["trained"]
    ]
    seconds = sum(row["seconds"] for row in found["trained"])
    return "\n".join(
        [
            f"| trained on | images | {' | '.join(f'tested on {test}' for test in tested)} |",
            f"|---|---|{'---|' * len(tested)}",
            *rows,
            "",
            "Macro-F1 over the classes that both have, 95 % interval, number of classes and validation images. "
            f"`{result['prepared_by']}`, `{result['command']}`, one seed; "
            f"{seconds:.0f} s of training in all. {_machine(result['machine'])}.",
            "",
            f"> {found['shortcuts']['verdict']}",
        ]
    )


def _shared(cell: dict[str, Any]) -> str:
    score = cell["shared"]
    low, high = score["macro_f1"]["ci95"]
    return (
        f"**{score['macro_f1']['value']:.3f}** ({low:.3f} to {high:.3f}); {len(score['classes'])} classes, "
        f"{score['images']} images"
    )


def time_to_score_table(result: dict[str, Any]) -> str:
    """Seconds to each macro-F1 of both sides, and how many times fewer ours are."""
    preparation, runs = result["preparation_seconds"], result["runs"]
    rows = [
        f"| {bar} | {_reached(row['hemafast'])} | {_reached(row['reference'])} | {_times(row, 'ratio')} "
        f"| {_times(row, 'ratio_with_preparation')} |"
        for bar, row in result["thresholds"].items()
    ]
    falls = ", ".join(f"{fall:.3f}" for fall in result["biggest_fall"]["hemafast"])
    last = {
        side: " / ".join(
            f"{run['points'][-1]['f1_macro']:.3f} at {run['points'][-1]['seconds']:.0f} s" for run in seeds
        )
        for side, seeds in runs.items()
    }
    ours, theirs = (_epoch_seconds(runs[side]) for side in ("hemafast", "reference"))
    images = result["images"]
    return "\n".join(
        [
            "| macro-F1 | hemafast, seconds | reference, seconds | reference / hemafast | preparation counted |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"`{result['command']}`: `{result['ours']}` beside the reference's loop, {result['model']} from the same "
            f"ImageNet weights, {images['train']:,} training and {images['val']} validation images of "
            f"{result['domain']}, {result['classes']} classes, {len(runs['hemafast'])} seeds in turn, median "
            f"(each seed). Seconds from the start of the process; preparing took {preparation['hemafast']:.0f} s, "
            f"unpacking for the reference {preparation['reference']:.1f} s. Runs end at {last['hemafast']} (hemafast) "
            f"and {last['reference']} (reference). An epoch and its validation take {ours:.0f} and {theirs:.0f} s, "
            f"{theirs / ours:.1f} times as long; the rest of a ratio is that fewer of them are needed. The biggest "
            f"falls of macro-F1 between two validations of ours after the first third are {falls}. "
            f"{_machine(result['machine'])}.",
        ]
    )


def _epoch_seconds(runs: list[dict[str, Any]]) -> float:
    """Median seconds from one validation to the next; how a process starts is no part of it."""
    pairs = (pair for run in runs for pair in itertools.pairwise(run["points"]))
    return median(float(after["seconds"] - before["seconds"]) for before, after in pairs)


def _reached(side: dict[str, Any]) -> str:
    each = " / ".join("not" if seconds is None else f"{seconds:.0f}" for seconds in side["seconds"])
    if side["median"] is None:
        return f"not in {side['at_least']:.0f} ({each})"
    return f"**{side['median']:.0f}** ({each})"


def _times(row: dict[str, Any], name: str) -> str:
    if name not in row:
        return ""
    return f"{'more than ' if row['ratio_is_bound'] else ''}**{row[name]:.1f}x**"


def levers_table(result: dict[str, Any]) -> str:
    """What a change of one lever makes of the preset."""
    plain = next(iter(result["levers"].values()))
    rows = []
    for name, lever in result["levers"].items():
        seconds = " | ".join("not" if found is None else f"{found:.0f}" for found in lever["seconds_to"].values())
        gain = "" if lever is plain else f"{lever['area'] - plain['area']:+.3f}"
        options = f"`{lever['options']}`" if lever["options"] else ""
        rows.append(
            f"| {name} | {options} | {lever['seeds']} | {seconds} | {_median_of(lever['areas'])} | {gain} "
            f"| {_median_of(lever['lasts'])} | {lever['fall']:.3f} | {lever['seconds']:.0f} |"
        )
    bars = " | ".join(f"to {bar}, s" for bar in plain["seconds_to"])
    images = result["images"]
    return "\n".join(
        [
            f"| `--preset {result['preset']}` | options | seeds | {bars} "
            "| area | gain | last | biggest fall | seconds |",
            "|---|---|" + "---|" * (len(plain["seconds_to"]) + 6),
            *rows,
            "",
            f"`{result['command']}`: {result['model']}, {images['train']:,} training and {images['val']} validation "
            f"images of {result['domain']}; medians of the seeds (min to max). `not`: most of the seeds miss it. The "
            f"area is the mean macro-F1 of the best model so far over the first {result['seconds']:.0f} s; the biggest "
            f"fall of any seed is between two validations after the first third. {_machine(result['machine'])}.",
        ]
    )


def _median_of(values: list[float]) -> str:
    several = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{median(values):.3f}{several}"


def on_time_table(result: dict[str, Any]) -> str:
    """What a time budget was, and what the command took."""
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {(one["preset"], one["budget"]): [] for one in result["runs"]}
    for one in result["runs"]:
        runs[one["preset"], one["budget"]].append(one)
    rows = []
    for (preset, budget), seeds in runs.items():
        taken = ", ".join(f"{one['seconds']:.1f} ({one['seconds'] / budget - 1:+.1%})" for one in seeds)
        epochs, scores = (
            ", ".join(shown.format(one[key]) for one in seeds)
            for shown, key in (("{}", "epochs"), ("{:.3f}", "f1_macro"))
        )
        rows.append(f"| `--preset {preset} --time-budget {budget}s` | {taken} | {epochs} | {scores} |")
    images = result["images"]
    return "\n".join(
        [
            "| | seconds of the command | epochs | macro-F1 |",
            "|---|---|---|---|",
            *rows,
            "",
            f"`{result['command']}`: {result['model']}, {images['train']:,} training and {images['val']} validation "
            f"images of {' and '.join(result['domains'])}. {_machine(result['machine'])}.",
        ]
    )


def equal_time_table(result: dict[str, Any]) -> str:
    """The score of both sides after the same seconds, by domain."""
    rows = []
    for domain, found in result["domains"].items():
        sides = [_with_interval(found["macro_f1"][side], ".3f") for side in ("hemafast", "reference")]
        seeds = " against ".join(
            " / ".join(f"{score:.3f}" for score in found["seeds"][side]) for side in ("hemafast", "reference")
        )
        rows.append(
            f"| {domain} | {result['seconds'][domain]:.0f} | {' | '.join(sides)} "
            f"| {_with_interval(found['ahead'], '+.3f')} | {seeds} | {found['classes']} | {found['images']} |"
        )
    return "\n".join(
        [
            "| validation images of | seconds | hemafast | reference | ahead by | each seed | classes | images |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"`{result['command']}`: `{result['ours']} --time-budget SECONDS` beside the reference's loop, macro-F1 of "
            "the best epoch within the seconds, mean over the seeds (95 % interval over the images, "
            "which both sides share). "
            f"Of its {' and '.join(f'{seconds:.0f}' for seconds in result['seconds'].values())} s hemafast took "
            f"{' and '.join(' / '.join(f'{one:.1f}' for one in taken) for taken in result['taken'].values())}. "
            f"{_machine(result['machine'])}.",
        ]
    )


def _with_interval(found: dict[str, Any], form: str) -> str:
    low, high = found["ci95"]
    return f"**{found['mean']:{form}}** ({low:{form}} to {high:{form}})"


def predict_table(result: dict[str, Any]) -> str:
    """What predicting reaches of the network alone."""
    titles = {
        "forward": "the network alone",
        "zip": "`hemafast predict`, a zip",
        "files": "`hemafast predict`, a folder",
    }
    rows = []
    for side, title in titles.items():
        rate, per_cpu = result["images_per_second"][side], result["images_per_cpu_second"][side]
        share = result["share_of_forward"].get(side)
        rows.append(f"| {title} | {spread(rate)} | {spread(per_cpu)} | {_percentages(share) if share else ''} |")
    return "\n".join(
        [
            "| | images/s | images per CPU-second | of the network alone |",
            "|---|---|---|---|",
            *rows,
            "",
            f"`{result['command']}`, {result['precision']}, {result['image_size']} px, batch {result['batch_size']}, "
            f"{result['images']:,} real images of {result['archive']}, {result['rounds']} rounds in turn, median "
            f"(min to max). {_machine(result['machine'])}.",
        ]
    )


def _percentages(found: dict[str, float]) -> str:
    return f"{found['median']:.1%} ({found['min']:.1%} to {found['max']:.1%})"


TABLES_OF_CODE: dict[str, Callable[[], str]] = {
    "policies": policies_table,
    "augmentation": augmentation_table,
    "presets": presets_table,
}
TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "loaders": loaders_table,
    "loaders_short": loaders_short_table,
    "quick": quick_table,
    "predict": predict_table,
    "scores": scores_table,
    "crossdomain": crossdomain_table,
    "bench": bench_table,
    "bench_short": bench_short_table,
    "scaling": scaling_table,
    "prepare": prepare_table,
    "field_of_view": field_of_view_table,
    "train_step": train_step_table,
    "depthwise": depthwise_table,
    "depthwise_avx512": depthwise_table,
    "folding": folding_table,
    "end_to_end": end_to_end_table,
    "time_to_score": time_to_score_table,
    "time_to_score_avx2": time_to_score_table,
    "on_time": on_time_table,
    "levers": levers_table,
    "equal_time": equal_time_table,
}


def _gain(ratio: dict[str, float], digits: int = 2) -> str:
    """How many times as much: the median in bold, and the range."""
    median, least, most = (f"{ratio[name]:.{digits}f}" for name in ("median", "min", "max"))
    return f"**{median}x** ({least} to {most})"


def _machine(facts: dict[str, str]) -> str:
    gpu = facts.get("gpu", "no GPU")
    versions = f"torch {facts['torch']}, DALI {facts['nvidia-dali-cuda120']}"
    return f"{facts['cores']} cores of {facts['processor']}, {gpu}, {versions}"


def main() -> int:
    """Write or check the pages; the exit code is 1 if a check finds one out of date."""
    stale = False
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = render(before)
        stale |= before != after
        if "--check" not in sys.argv[1:]:
            page.write_text(after, encoding="utf-8")
    return int(stale and "--check" in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
