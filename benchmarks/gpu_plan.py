"""What GPUs could do, by counted work and data sheets: the tables of docs/gpu.md. Nothing was measured on a GPU.

    python benchmarks/gpu_plan.py --json benchmarks/results/gpu_plan.json

The file holds what is counted, on tensors without data; versions of torch and timm may count differently. The tables
are calculated from it.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import typer
from gpu_day_one import STEPS
from output import JsonFile, percentages, table, write_json
from pydantic import TypeAdapter

from hemafast.bench.result import Costs

ROOT = Path(__file__).resolve().parent.parent

CLASSES = 11
IMAGES = 26_000
"""Training images of both archives: 80 % of 32,612."""
HOST_GPUS = 8
PEAK_SHARE = 0.4
"""Assumed share of the peak that convolutions reach on tensor cores."""
LAUNCH = 5e-6
"""Assumed seconds from one launch of a kernel to the next."""
BACKWARD_SHARE = 2 / 3
"""Assumed share of a step that can hide an all-reduce."""
BUCKET = 25 * 2**20
"""Bytes of gradients in one all-reduce: the default of DistributedDataParallel."""
LATENCY, LATENCY_HOSTS = 25e-6, 100e-6
"""Assumed seconds that each all-reduce adds, whatever its size: within a host, and between hosts."""
OPTIMIZER_BYTES = 28
"""AdamW reads weight, gradient and two moments of a parameter and writes three of them back, in fp32."""


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU by its data sheet, in a host of eight; docs/gpu.md names the sheets."""

    name: str
    peak: float
    """Dense bf16 FLOP/s of its tensor cores."""
    memory: float
    """Bytes/s of its own memory."""
    link: float
    """Bytes/s in one direction from one GPU to the others of its host."""
    network: float
    """Bytes/s out of the host, all network cards together."""


A100 = Card("A100 80 GB", 312e12, 2.039e12, 300e9, 8 * 25e9)
H200 = Card("H200 SXM", 989e12, 4.8e12, 450e9, 8 * 50e9)

Key = tuple[str, int, int]
"""Name of a network, image size in pixels, and batch size of one GPU."""

GOALS = {"efficientnet_b0": 9_000, "resnet18": 20_000}
"""Images/s of training that one H200 is to reach at 224 px in bf16."""
BATCHES = (32, 256)
ANCHOR: Key = ("efficientnet_b0", 224, 256)
PUBLISHED: dict[Key, dict[int, int]] = {
    ANCHOR: {1: 2489, 8: 16_652},
    ("efficientnet_b4", 380, 128): {1: 331, 64: 18_900},
    ("resnet50", 224, 256): {1: 2470, 8: 16_621},
}
"""Published images/s on A100 80 GB by number of GPUs; docs/gpu.md says where."""


@dataclass(frozen=True, slots=True)
class Work:
    """What training a network costs: forward and backward in 16 bits, gradients and optimizer in fp32."""

    costs: Costs
    """Of an image."""
    least_bytes: int
    """Of an image, if everything is fused into convolutions and matrix products."""
    parameters: int
    batch: int
    launches: int
    """Kernels of a step: of ours, run eagerly, or 1 if the whole step is one CUDA graph."""

    def step_bytes(self) -> float:
        """Bytes that a step moves, with the optimizer, if nothing is fused."""
        return self.batch * self.costs.training_bytes + OPTIMIZER_BYTES * self.parameters

    def parts(self, card: Card, memory_share: float) -> dict[str, float]:
        """Seconds of a step by what may take its time. `memory_share` of the bandwidth is reached."""
        return {
            "arithmetic": self.batch * self.costs.training_flops / (card.peak * PEAK_SHARE),
            "memory": self.step_bytes() / (card.memory * memory_share),
            "launches": self.launches * LAUNCH,
        }

    def seconds(self, card: Card, gpus: int, memory_share: float) -> float:
        """Seconds of a step on each of several GPUs: its slowest part, and the exchange that backward does not hide."""
        alone = max(self.parts(card, memory_share).values())
        if gpus == 1:
            return alone
        several_hosts, gradients = gpus > HOST_GPUS, 4 * self.parameters
        slowest = min(card.link, card.network) if several_hosts else card.link
        exchange = 2 * (gpus - 1) / gpus * gradients / slowest
        latency = math.ceil(gradients / BUCKET) * (LATENCY_HOSTS if several_hosts else LATENCY)
        return alone + max(0.0, exchange - BACKWARD_SHARE * alone) + latency

    def rate(self, card: Card, gpus: int, memory_share: float) -> float:
        """Images/s of all GPUs together."""
        return gpus * self.batch / self.seconds(card, gpus, memory_share)


Counts = Mapping[str, Work]
"""Work by `named` network."""


def count(key: Key) -> Work:
    """The work of training a network of timm in bf16, counted on tensors without data, with its launches if eager."""
    import torch

    from hemafast.bench.costs import DTYPES, least_training_bytes, model_costs, step_operations
    from hemafast.model import build_model

    model, image_size, batch = key
    with torch.device("meta"):
        network = build_model(model, CLASSES, image_size)
    asked = (network, image_size, DTYPES["bf16"], batch)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    launches = step_operations(model, CLASSES, "bf16")
    return Work(model_costs(*asked), least_training_bytes(*asked), parameters, batch, launches)


def counted_keys() -> list[Key]:
    """All networks of the tables."""
    goals = [(model, 224, batch) for model in GOALS for batch in BATCHES]
    return list(dict.fromkeys([*goals, *PUBLISHED]))


def read_counts(results: Mapping[str, Any]) -> dict[str, Work]:
    """The counts of the result file."""
    return TypeAdapter(dict[str, Work]).validate_python(results["gpu_plan"])


def work_of(counts: Counts, key: Key) -> Work:
    """The work of a network whose step is one CUDA graph."""
    return replace(counts[named(key)], launches=1)


def memory_share(counts: Counts) -> float:
    """The share of the A100's memory bandwidth that the first published rate implies; assumed for every card."""
    return work_of(counts, ANCHOR).step_bytes() / ANCHOR[2] * PUBLISHED[ANCHOR][1] / A100.memory


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """The tables of docs/gpu.md."""
    counts = read_counts(results)
    return {
        "gpu_steps": _steps(),
        "gpu_work": _work(counts),
        "gpu_goals": _goals(counts),
        "gpu_published": _published(counts),
        "gpu_projection": _projection(counts, results["scaling"]),
    }


def _steps() -> str:
    """What the script of day one does, in its order, from the docstrings of its steps."""
    tree = ast.parse((ROOT / "benchmarks/gpu_steps.py").read_text(encoding="utf-8"))
    said = {node.name: ast.get_docstring(node) or "" for node in tree.body if isinstance(node, ast.FunctionDef)}
    rows = [[f"`{step.name}`", str(step.seconds), said[step.name].splitlines()[0]] for step in STEPS]
    return table(f"step | limit, s ({sum(step.seconds for step in STEPS)} in all) | what it leaves", rows)


def _work(counts: Counts) -> str:
    """What a step costs, and what each cost takes on an H200."""
    carried = memory_share(counts) * H200.memory
    rows = []
    for model in GOALS:
        for batch in BATCHES:
            work = counts[named((model, 224, batch))]
            arithmetic, memory, launches = work.parts(H200, memory_share(counts)).values()
            fused = batch * work.least_bytes / carried
            rows.append(
                [
                    named((model, 224, batch)),
                    f"{work.costs.training_flops / 1e9:.2f}",
                    f"{work.costs.training_bytes / 1e6:.0f} to {work.least_bytes / 1e6:.0f}",
                    f"{work.launches:,}",
                    f"{1000 * arithmetic:.1f}",
                    f"{1000 * memory:.1f} to {1000 * fused:.1f}",
                    f"{1000 * launches:.1f}",
                    f"{batch / max(memory, launches):,.0f} to {batch / max(fused, launches, arithmetic):,.0f}",
                    f"{batch / memory:,.0f} to {batch / max(fused, arithmetic):,.0f}",
                    " to ".join(
                        f"{launches * carried / moved:.0f}" for moved in (work.costs.training_bytes, work.least_bytes)
                    ),
                ]
            )
    costs = "GFLOP an image | MB an image | launches a step"
    spent = "arithmetic, ms a step | memory, ms | launches, ms"
    return table(f"| {costs} | {spent} | eager, images/s | one graph, images/s | launches bind below batch", rows)


def _goals(counts: Counts) -> str:
    """What the goals ask of an H200."""
    rows = []
    for model, goal in GOALS.items():
        work = work_of(counts, (model, 224, 256))
        unfused = goal * work.step_bytes() / work.batch
        allowed = memory_share(counts) * H200.memory / goal
        rows.append(
            [
                model,
                f"{goal:,}",
                _percent(goal * work.costs.training_flops / H200.peak),
                _percent(unfused / H200.memory),
                _percent(goal * work.least_bytes / H200.memory),
                f"{allowed / 1e6:.0f}",
                _percent(max(0.0, 1 - allowed / work.costs.training_bytes)),
            ]
        )
    shares = "of the peak | of the bandwidth, nothing fused | of the bandwidth, all fused"
    needs = f"MB an image that {_percent(memory_share(counts))} of the bandwidth carry | of the bytes to fuse away"
    return table(f"| goal, images/s | {shares} | {needs}", rows)


def _published(counts: Counts) -> str:
    """Published rates, and those that the model gives."""
    rows = []
    for key, rates in PUBLISHED.items():
        work = work_of(counts, key)
        for gpus, rate in rates.items():
            ours = work.rate(A100, gpus, memory_share(counts))
            of_memory = rate / gpus * work.step_bytes() / work.batch / A100.memory
            efficiency = _percent(rate / gpus / rates[1])
            row = [named(key), str(gpus), f"{rate:,}", efficiency, _percent(of_memory), f"{ours:,.0f}"]
            rows.append([*row, f"{100 * (ours / rate - 1):+.0f} %"])
    return table("| GPUs | published, images/s | efficiency | of the bandwidth | model, images/s | off by", rows)


def _projection(counts: Counts, scaling: Mapping[str, Any]) -> str:
    """Training on 1, 8 and 64 GPUs, and what two processes of this machine's kind reached."""
    rows = []
    for model in GOALS:
        for batch in BATCHES:
            work = work_of(counts, (model, 224, batch))
            one, eight, many = (work.rate(H200, gpus, memory_share(counts)) for gpus in (1, 8, 64))
            efficiency = [_percent(eight / 8 / one), _percent(many / 64 / one)]
            rates = [f"{rate:,.0f}" for rate in (one, eight, many)]
            steps = [str(math.ceil(IMAGES / 64 / batch)), f"{IMAGES / many:.2g}"]
            rows.append([named((model, 224, batch)), *rates, *efficiency, *steps])
    ranks = scaling["axes"]["ranks"]["series"]
    measured = "; ".join(f"{name}: {percentages(found['efficiency'][-1])}" for name, found in ranks.items())
    cores = scaling["machine"]["cores"]
    note = f"Measured, efficiency of two gloo processes of one thread on {cores} CPU cores: {measured}."
    columns = "on 1, images/s | on 8 | on 64 | efficiency on 8 | on 64"
    return table(f"H200, nothing fused | {columns} | steps an epoch on 64 | seconds", rows, note)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def named(key: Key) -> str:
    """A network in words, as tables and the result file name it."""
    model, image_size, batch_size = key
    return f"{model}, {image_size} px, batch {batch_size}"


def main(json_file: JsonFile) -> None:
    """Count the work of all networks: about 15 s on one core."""
    write_json({named(key): asdict(count(key)) for key in counted_keys()}, json_file)


if __name__ == "__main__":
    typer.run(main)
