"""Search for input that hemafast neither takes nor refuses. Prints a summary as JSON; exit code 1 if there is any.

python tools/run_fuzz.py                           # 100,000 inputs
python tools/run_fuzz.py --inputs 900 --seed 3     # fewer, others
python tools/run_fuzz.py --only settings tables    # some readers
python tools/run_fuzz.py --engine atheris          # guided by the lines that inputs reach: pip install atheris
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path

from fuzz.search import ATHERIS, HYPOTHESIS, search, summary
from fuzz.targets import TARGETS

SLOW = ("archives", "data_sets", "manifests", "models", "programs", "reports", "predictions", "commands")
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
        outcomes[name] = search(name, TARGETS[name], inputs, asked.seed, asked.engine)
    found = summary(outcomes, asked.keep)
    print(json.dumps(found, indent=2))
    return 1 if found["failures"] else 0


def import_early(engine: str) -> None:
    """Import the readers, with the counters that atheris follows."""
    counted = nullcontext()
    if engine == ATHERIS:
        import atheris

        counted = atheris.instrument_imports(include=["hemafast"])
    with counted:
        for name in EARLY:
            importlib.import_module(name)


if __name__ == "__main__":
    sys.exit(main())
