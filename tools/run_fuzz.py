"""Search for input that hemafast neither takes nor refuses. Prints a summary as JSON; exit code 1 if there is any.

python tools/run_fuzz.py                           # 100,000 inputs
python tools/run_fuzz.py --json benchmarks/results/fuzz.json
python tools/run_fuzz.py --inputs 900 --seed 3     # fewer, others
python tools/run_fuzz.py --only settings tables    # some readers
python tools/run_fuzz.py --engine atheris          # guided by the lines that inputs reach: pip install atheris
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import shlex
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

from fuzz.search import ATHERIS, HYPOTHESIS, search, summary
from fuzz.targets import TARGETS
from output import machine_line, print_json, table  # a script beside the package, not a part of it

from hemafast.words import counted

SLOW = ("archives", "data_sets", "manifests", "models", "ensembles", "programs", "reports", "predictions", "commands")
"""They get one share of the inputs; the others get QUICK shares."""
QUICK = 3
DRAWN = ("commands",)
"""Only drawn: changed bytes could be a command that writes outside its folder."""
EARLY = (
    *("hemafast.cli", "hemafast.deploy.model", "hemafast.deploy.export", "hemafast.deploy.explain"),
    *("hemafast.preparation.build", "hemafast.data.dataset", "hemafast.engine.trainer"),
)
"""Imported once, before there are processes that would each do it."""


def main() -> int:
    """Run the search; the exit code is 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--inputs", type=int, default=100_000, help="inputs in all")
    parser.add_argument("--seed", type=int, default=1, help="another seed draws other inputs")
    parser.add_argument("--only", nargs="+", choices=sorted(TARGETS), default=list(TARGETS), help="readers")
    parser.add_argument("--keep", type=Path, help="folder for inputs that failed")
    parser.add_argument("--json", type=Path, help="file for the counts")
    parser.add_argument("--engine", choices=(HYPOTHESIS, ATHERIS), default=HYPOTHESIS, help="what finds the inputs")
    asked = parser.parse_args()
    if asked.engine == ATHERIS and importlib.util.find_spec(ATHERIS) is None:
        parser.error("atheris is not installed: pip install atheris")
    os.environ["HF_HUB_OFFLINE"] = "1"
    import_early(asked.engine)
    readers = [name for name in asked.only if asked.engine == HYPOTHESIS or name not in DRAWN]
    shares = {name: 1 if name in SLOW else QUICK for name in readers}
    outcomes = {}
    for name, share in shares.items():
        inputs = -(-asked.inputs * share // sum(shares.values()))
        outcomes[name] = one = search(name, TARGETS[name], inputs, asked.seed, asked.engine)
        told = f"{name}: {one.inputs:,} inputs, {one.refused:,} refused, {counted(len(one.failures), 'fault')}"
        print(f"{told}, {one.seconds:.0f} s", file=sys.stderr, flush=True)
    found = summary(outcomes, asked.keep)
    print_json({"command": _command(asked), "machine": _machine(), **found}, asked.json)
    return 1 if found["failures"] else 0


def _command(asked: argparse.Namespace) -> str:
    words = ["python", "tools/run_fuzz.py", "--inputs", str(asked.inputs), "--seed", str(asked.seed)]
    words += [] if asked.only == list(TARGETS) else ["--only", *asked.only]
    return shlex.join(words + ([] if asked.engine == HYPOTHESIS else ["--engine", asked.engine]))


def _machine() -> dict[str, str]:
    from hemafast.engine.machine import machine_facts  # after `import_early`

    return machine_facts("cpu")


def import_early(engine: str) -> None:
    """Import the readers, with the counters that atheris follows."""
    counted = nullcontext()
    if engine == ATHERIS:
        import atheris

        counted = atheris.instrument_imports(include=["hemafast"])
    with counted:
        for name in EARLY:
            importlib.import_module(name)


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """What became of the inputs of the last search, by reader."""
    result = results["fuzz"]
    failed = [one["target"] for one in result["failures"]]
    rows = []
    for name, one in result["targets"].items():
        counts = one["inputs"], one["inputs"] - one["refused"], one["refused"], failed.count(name)
        rows.append([name.replace("_", " "), *(f"{count:,}" for count in counts)])
    note = f"`{result['command']}`. {machine_line(result['machine'])}"
    return {"fuzz": table("reader of | inputs | taken | refused in words | neither", rows, note)}


if __name__ == "__main__":
    sys.exit(main())
