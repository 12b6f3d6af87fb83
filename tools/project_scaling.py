"""Write benchmarks/scaling_projection.md: how training would scale to 1, 8 and 64 GPUs. Calculated, not measured.

python tools/project_scaling.py           # write
python tools/project_scaling.py --check   # exit 1 if the page is out of date
"""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import scaling_model as model_of
from scaling_model import A100, ANCHORS, CARDS, HOST_GPUS, anchored_share, count, reached

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "benchmarks" / "scaling_projection.md"
LOADERS = ROOT / "benchmarks" / "results" / "loaders.json"

IMAGES = 26_000
"""Training images of both archives: 80 % of 32,612."""
MODELS = ("resnet18", "efficientnet_b0")
BATCHES, GPUS = (32, 256), (1, 8, 64)
OPERATOR_SECONDS = 10e-6
"""Assumed seconds to launch one operator without a compiler."""


def _table(header: str, rows: list[str]) -> str:
    return "\n".join([f"| {header} |", "|---" * (header.count("|") + 1) + "|", *(f"| {row} |" for row in rows)])


def _percent(share: float, digits: int = 1, sign: str = "") -> str:
    return f"{100 * share:{sign}.{digits}f} %"


def counts() -> str:
    """What an image and a step cost."""
    rows = [
        f"{model} | {work.flops / 1e9:.2f} | {work.image_bytes / 1e6:.0f} | {work.step_bytes / 1e6:.0f} "
        f"| {work.kept_bytes / 1e6:.0f} | {3 * 224**2 / 1e6:.2f} | {work.parameters / 1e6:.2f} M "
        f"| {4 * work.parameters / 1e6:.1f} | {work.operators}"
        for model in MODELS
        for work in [count(model)]
    ]
    header = "| GFLOP an image | MB moved an image | MB moved a step besides | MB kept an image | MB of input an image"
    return _table(f"{header} | parameters | MB of gradients | operators a step", rows)


def cards() -> str:
    """The data sheets."""
    rows = [
        f"{card.name} | {card.peak / 1e12:.0f} | {card.memory / 1e9:,.0f} | {card.link / 1e9:.0f} "
        f"| {card.network / 1e9:g} | {card.cores}"
        for card in CARDS
    ]
    units = "TFLOP/s, bf16, dense | memory, GB/s | link within a host, GB/s | network of a host, GB/s"
    return _table(f"card | {units} | CPU cores of a host", rows)


def assumptions() -> str:
    """What is neither counted nor on a data sheet."""
    return "\n".join(
        [
            f"- Convolutions reach {_percent(model_of.PEAK_SHARE, 0)} of the peak. Memory reaches "
            f"{_percent(anchored_share())} of its bandwidth, on every card: what the anchor below implies.",
            f"- Backward is {_percent(model_of.BACKWARD_SHARE, 0)} of a step and hides an all-reduce of that length; "
            "the rest shows.",
            f"- Gradients travel in buckets of {model_of.BUCKET / 2**20:.0f} MiB. Each adds "
            f"{1e6 * model_of.LATENCY:.0f} us within a host and "
            f"{1e6 * model_of.LATENCY_HOSTS:.0f} us between hosts, hidden by nothing.",
            f"- AdamW moves {model_of.OPTIMIZER_BYTES} bytes a parameter. A host holds {HOST_GPUS} GPUs.",
        ]
    )


def anchor() -> str:
    """Published rates beside those of the model."""
    rows = []
    for (model, pixels, batch), published in ANCHORS.items():
        work = count(model, pixels)
        implied = f"{_percent(work.flops * published[1] / A100.peak)} | {_percent(reached(model, pixels, batch))}"
        for gpus, rate in published.items():
            ideal, ours = (work.rate(A100, batch, gpus, share) for share in (1, anchored_share()))
            rows.append(
                f"{model}, {pixels} px, batch {batch} | {gpus} | {rate:,} | {_percent(rate / gpus / published[1], 0)} "
                f"| {ideal:,.0f} | {ours:,.0f} | {_percent(ours / rate - 1, 0, '+')} | "
                f"{implied if gpus == 1 else ' | '}"
            )
    header = "| GPUs | published, images/s | efficiency | model, full bandwidth | model, as used below | off by"
    return _table(f"{header} | implied share of peak | implied share of bandwidth", rows)


def speed() -> str:
    """The projection."""
    rows = []
    for model in MODELS:
        for batch in BATCHES:
            for card in CARDS:
                rates = [count(model).rate(card, batch, gpus, anchored_share()) for gpus in GPUS]
                lost = [_percent(rate / gpus / rates[0]) for rate, gpus in zip(rates, GPUS, strict=True)][1:]
                cells = [*(f"{rate:,.0f}" for rate in rates), *lost, *(f"{IMAGES / rate:.2g}" for rate in rates)]
                rows.append(f"{model}, batch {batch} | {card.name} | {' | '.join(cells)}")
    header = "| card | images/s on 1 | on 8 | on 64 | efficiency on 8 | on 64 | epoch on 1, s | on 8, s | on 64, s"
    return _table(header, rows)


def loader() -> str:
    """What a host's loader has to give, in cores that give what those of the benchmark gave."""
    result = json.loads(LOADERS.read_text(encoding="utf-8"))
    sides = {"crop and eight symmetries": "hemafast_packed", "the reference's augmentation": "hemafast_seed_packed"}
    rates = {name: result["sides"][side]["images_per_second"]["median"] for name, side in sides.items()}
    rows = []
    for model in MODELS:
        for card in CARDS:
            need = count(model).rate(card, max(BATCHES), HOST_GPUS, anchored_share())
            cores = [need / (rate / result["threads"]) for rate in rates.values()]
            verdict = "yes" if max(cores) > card.cores else "no"
            rows.append(
                f"{model} | {card.name} | {need:,.0f} | {' | '.join(f'{n:.1f}' for n in cores)} | {card.cores} "
                f"| {verdict}"
            )
    names = " | ".join(f"cores, {name} ({rate:,.0f} images/s on {result['threads']})" for name, rate in rates.items())
    return _table(f"| card | 8 GPUs want, images/s | {names} | cores of a host | more than it has?", rows)


def limits() -> str:
    """What many GPUs mean for few images."""
    rows = [
        f"{gpus} | {batch} | {gpus * batch:,} | {math.ceil(IMAGES / gpus / batch):,} "
        f"| {30 * math.ceil(IMAGES / gpus / batch):,}"
        for batch in BATCHES
        for gpus in GPUS
    ]
    return _table("GPUs | batch of each | images a step | steps an epoch | steps in 30 epochs", rows)


def launches() -> str:
    """How near launching operators comes to the shortest steps of the projection."""
    parts = []
    for model in MODELS:
        work = count(model)
        shortest = min(work.seconds(card, min(BATCHES), 1, anchored_share()) for card in CARDS)
        parts.append(
            f"{model} launches {work.operators} operators a step, {1e3 * OPERATOR_SECONDS * work.operators:.1f} ms at "
            f"{1e6 * OPERATOR_SECONDS:.0f} us each, and its shortest step above is {1e3 * shortest:.1f} ms"
        )
    return "; ".join(parts) + "."


BLOCKS = {block.__name__: block for block in (counts, cards, assumptions, anchor, speed, loader, limits, launches)}


def render(text: str) -> str:
    """The page with every block `<!-- table: NAME -->` ... `<!-- end -->` filled."""
    return re.sub(
        r"<!-- table: (\w+) -->.*?<!-- end -->",
        lambda match: f"<!-- table: {match[1]} -->\n{BLOCKS[match[1]]()}\n<!-- end -->",
        text,
        flags=re.DOTALL,
    )


def main() -> int:
    """Write or check the page; the exit code is 1 if a check finds it out of date."""
    before = PAGE.read_text(encoding="utf-8")
    after = render(before)
    if "--check" in sys.argv[1:]:
        return int(before != after)
    PAGE.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
