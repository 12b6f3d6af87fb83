"""Write the README's tables from benchmarks/results, so that no figure in it is typed by hand.

python tools/render_readme.py           # write
python tools/render_readme.py --check   # exit 1 if the README is out of date
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hemafast.tables import spread

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"


def render(text: str) -> str:
    """The README with every block `<!-- table: NAME -->` ... `<!-- end -->` filled from its result file."""

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        table = TABLES[name](json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))
        return f"<!-- table: {name} -->\n{table}\n<!-- end -->"

    return re.sub(r"<!-- table: (?P<name>\w+) -->.*?<!-- end -->", fill, text, flags=re.DOTALL)


def quick_table(result: dict[str, Any]) -> str:
    """Scores of the quick preset on real archives."""
    metrics = result["metrics"]
    rows = [
        f"| {name} | **{part['macro_f1']:.3f}** | {part['macro_f1_ci95'][0]:.3f} to {part['macro_f1_ci95'][1]:.3f} "
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
            f"`{result['command']}` on {images:,} real images ({', '.join(data['domains'])}; "
            f"{100 * data['val_fraction']:.0f} % validation, split seed {data['split_seed']}, training seed "
            f"{training['seed']}), started from {metrics['model']['started_from']}. Preparation "
            f"{result['prepare_seconds']:.0f} s; {training['epochs']} epochs in {training['total_seconds']:.0f} s, "
            f"validation included; {training['train_images_per_second']:.0f} images/s. {_machine(result['machine'])}.",
        ]
    )


def bench_table(result: dict[str, Any]) -> str:
    """Rates of the stations of `hemafast bench`."""
    chosen = result["bench"]
    rows = []
    for name, station in result["stations"].items():
        rate, per_cpu = station["images_per_second"], station["images_per_cpu_second"]
        ratio = result["ratios"].get(name)
        against = f"**{ratio['median']:.1f}x** ({ratio['min']:.1f} to {ratio['max']:.1f})" if ratio else ""
        rows.append(f"| {name} | {spread(rate)} | {spread(per_cpu)} | {against} |")
    return "\n".join(
        [
            "| station | images/s | images per CPU-second | against plain PyTorch |",
            "|---|---|---|---|",
            *rows,
            "",
            f"`hemafast bench` ({chosen['model']}, {chosen['image_size']} px, batch {chosen['batch_size']}; loaders: "
            f"batch {chosen['loader_batch_size']}), real images of {' and '.join(result['data']['domains'])}, "
            f"{result['rounds']} rounds in turn, median (min to max). {_machine(result['machine'])}.",
            "",
            f"> {result['bound_by']}",
        ]
    )


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {"quick": quick_table, "bench": bench_table}


def _machine(facts: dict[str, str]) -> str:
    gpu = facts.get("gpu", "no GPU")
    versions = f"torch {facts['torch']}, DALI {facts['nvidia-dali-cuda120']}"
    return f"{facts['cores']} cores of {facts['processor']}, {gpu}, {versions}"


def main() -> int:
    """Write or check the README; the exit code is 1 if a check finds it out of date."""
    before = README.read_text(encoding="utf-8")
    after = render(before)
    if "--check" in sys.argv[1:]:
        return int(before != after)
    README.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
