"""The effect of each step of `--preset fast` elsewhere: the race of `another_lab.py`, one step changed at a time.

    python benchmarks/levers_elsewhere.py --source DIR_WITH_THE_ARCHIVES --known benchmarks/results/another_lab.json \
        --json benchmarks/results/levers_elsewhere.json

Every side trains on the same cells of Acevedo_20 for a fixed number of epochs, so the scores do not depend on what else
the machine does. Gains are of pairs of one seed. The result is written after each run, and a later call with the same
`--work` adds the levers and seeds that are missing.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer
from another_lab import HOME, SCORE, cell, described, everywhere, means, prepared  # scripts beside this one
from library import trained
from output import JsonFileAddedTo, before, machine_line, table, write_json

import hemafast as hf
from hemafast.data.augment import POLICIES
from hemafast.engine.machine import machine_facts

Settings = Mapping[str, Any]

POLICY = "robust"


@dataclass(frozen=True, slots=True)
class Lever:
    """What one side changes."""

    settings: Settings = field(default_factory=dict)
    """Of `hf.train`."""
    policy: Settings = field(default_factory=dict)
    """Of the policy `robust`."""
    preset: str = "fast"


AS_IT_IS = "as it is"
_STEPS = {"policy": POLICY, "standardize": True, "quarter_turns": True}
_SCORE_FIRST = {"model": "tf_efficientnet_lite0", "epochs": 12}
LEVERS = {
    AS_IT_IS: Lever(),
    "images not standardized": Lever({"standardize": False}),
    "no change of colours": Lever(policy={"contrast": 0.0, "brightness": 0.0}),
    "no change of optical density": Lever(policy={"density": 0.0}),
    "channels not mixed, none grey": Lever(policy={"crosstalk": 0.0, "grey": 0.0}),
    "background kept": Lever(policy={"background": 0.0}),
    "no blur": Lever(policy={"blur": 0.0}),
    "blur to 4 px": Lever(policy={"blur": 4.0}),
    "one look": Lever({"quarter_turns": False}),
    "classes as they come": Lever({"sampler": "natural"}),
    "weights not averaged": Lever({"ema": 0.0}),
    "96 px": Lever({"image_size": 96}),
    "160 px": Lever({"image_size": 160}),
    "tf_efficientnet_lite1": Lever({"model": "tf_efficientnet_lite1"}),
    "tf_efficientnet_lite2": Lever({"model": "tf_efficientnet_lite2"}),
    "frozen batch norm": Lever({"freeze_norm": True, "clip_grad": 1.0}),
    "twice as many epochs": Lever({"epochs": 12}),
}
"""Changes of `fast`; what has no option is changed in the policy itself."""

OF_BEST = {
    AS_IT_IS: Lever(_SCORE_FIRST, preset="best"),
    "with the steps of `fast`": Lever(_SCORE_FIRST | _STEPS, preset="best"),
}
"""What the steps of `fast` cost and gain in `best`, with a network that has weights here and fewer epochs."""

RACES = {"fast": LEVERS, "best": OF_BEST}


@contextmanager
def changed_policy(changes: Settings) -> Iterator[None]:
    """`robust` with these changes, within the block."""
    plain = POLICIES[POLICY]
    POLICIES[POLICY] = replace(plain, **changes)
    try:
        yield
    finally:
        POLICIES[POLICY] = plain


def main(
    source: Annotated[Path, typer.Option(help="Folder with the archives.")],
    json_file: JsonFileAddedTo,
    preset: Annotated[list[str], typer.Option(help="Preset whose levers are moved; may be repeated.")] = ["fast"],  # noqa: B006
    seed: Annotated[list[int], typer.Option(help="Seed of a training; may be repeated.")] = [1, 2, 3],  # noqa: B006
    lever: Annotated[
        list[str] | None, typer.Option(help="Only this lever beside the unchanged preset; may be repeated.")
    ] = None,
    known: Annotated[
        Path | None, typer.Option(help="Result of another_lab.py: its runs are those of the unchanged presets.")
    ] = None,
    work: Annotated[Path, typer.Option(help="Where prepared data and runs are kept.")] = Path("runs/levers_elsewhere"),
    epochs: Annotated[int | None, typer.Option(help="Fewer epochs, to try the script.")] = None,
) -> None:
    """Prepare, then train with each lever and evaluate everywhere; seeds are the outer loop."""
    for name in (one for one in preset if one not in RACES):
        raise typer.BadParameter(f"There are no levers of {name!r}. Choose from: {', '.join(RACES)}.")
    home, labs = prepared(source, work / "data")
    machine = machine_facts("cpu")
    result: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/levers_elsewhere.py", *_words(preset, seed)]),
        "machine": machine,
        "data": described(home, labs),
        "presets": before(json_file, machine).get("presets", {}),
    }
    if known is not None:
        for of in preset:
            result["presets"].setdefault(of, {}).setdefault(AS_IT_IS, _known(known, of, result["data"]))
    write_json(result, json_file)
    chosen = [(of, name) for of in preset for name in RACES[of] if not lever or name in (AS_IT_IS, *lever)]
    for number, (of, name) in product(seed, chosen):
        found = result["presets"].setdefault(of, {}).setdefault(name, {})
        if str(number) not in found:
            folder = work / "runs" / of / name.replace(" ", "_")
            found[str(number)] = _raced(RACES[of][name], home, labs, folder, number, epochs)
            typer.echo(f"{of}, {name}, seed {number}: {found[str(number)]['scores']}", err=True)
            write_json(result, json_file)


def _known(file: Path, preset: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """By seed, the runs of a preset that another_lab.py measured. Ends the process if they are of other data."""
    found = json.loads(file.read_text(encoding="utf-8"))
    if found["data"] != data:
        sys.exit(f"{file} is of other data, or of data that were prepared otherwise.")
    return {str(run["seed"]): run for run in found["presets"].get(preset, {}).get("runs", ())}


def _raced(
    lever: Lever, home: hf.Dataset, labs: Mapping[str, hf.Dataset], folder: Path, seed: int, epochs: int | None
) -> dict[str, Any]:
    settings = dict(lever.settings) | ({} if epochs is None else {"epochs": epochs})
    with changed_policy(lever.policy):
        return everywhere(trained(home, folder, lever.preset, seed, **settings), labs)


def _words(presets: list[str], seeds: list[int]) -> list[str]:
    words = [word for name in presets for word in ("--preset", name)]
    return words + [word for number in seeds for word in ("--seed", str(number))]


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Of each preset and lever the macro-F1 everywhere, and the gain in unseen laboratories by pairs of one seed."""
    result = results["levers_elsewhere"]
    return {f"levers_elsewhere_{of}": _table(of, levers, result) for of, levers in result["presets"].items()}


def _table(preset: str, levers: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    labs, plain = list(result["data"]), levers[AS_IT_IS]
    elsewhere = [name for name in labs if name != HOME]
    note = (
        "Macro-F1, mean of the seeds (least to most). Gain: of the mean over the unseen laboratories, beside the run "
        "of the same seed without the change; in: how many of the laboratories gain. "
        f"`{result['command']}`. {machine_line(result['machine'])}"
    )
    header = " | ".join([f"`{preset}`", "seeds", f"{HOME}, at home", *elsewhere, "unseen", "gain", "in"])
    return table(header, [_row(name, elsewhere, runs, plain) for name, runs in levers.items() if runs], note)


def _row(name: str, labs: list[str], runs: Mapping[str, Any], plain: Mapping[str, Any]) -> list[str]:
    found = means(list(runs.values()))
    row = [name, str(len(runs)), *(cell(found[lab]) for lab in (HOME, *labs, "unseen"))]
    if runs is plain:
        return [*row, "", ""]
    pairs = [(runs[seed]["scores"], plain[seed]["scores"]) for seed in runs if seed in plain]
    gains = [[after[lab][SCORE] - before[lab][SCORE] for lab in labs] for after, before in pairs]
    each = [mean(of_seed) for of_seed in gains]
    spread = f" ({min(each):+.3f} to {max(each):+.3f})" if len(each) > 1 else ""
    better = sum(mean(of_lab) > 0 for of_lab in zip(*gains, strict=True))
    return [*row, f"{mean(each):+.3f}{spread}", f"{better} of {len(labs)}"]


if __name__ == "__main__":
    typer.run(main)
