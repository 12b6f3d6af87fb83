"""What GPUs could do, by counted work and data sheets: the tables of docs/gpu.md. Nothing was measured on a GPU.

python benchmarks/gpu_plan.py compare RESULT_JSON... # what `hemafast bench --json` measured, beside the ceilings
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from output import table

from hemafast.bench.result import LOADER, STEP, WHOLE, read_result
from hemafast.config import TrainConfig, checked
from hemafast.errors import HemafastError
from hemafast.presets import PRESETS

if TYPE_CHECKING:
    from hemafast.bench.result import Costs

ROOT = Path(__file__).resolve().parent.parent
DAY_ONE = ROOT / "benchmarks" / "gpu_day_one.sh"

CLASSES = 11
SQUARE = 256
"""Side in pixels of the squares that `hemafast prepare` packs."""
IMAGES = 26_000
"""Training images of both archives: 80 % of 32,612."""
MODELS, BATCHES, GPUS = ("resnet18", "efficientnet_b0"), (32, 256), (1, 8, 64)
"""What is projected to several GPUs."""

HOST_GPUS = 8
PEAK_SHARE = 0.4
"""Assumed share of the peak that convolutions reach on tensor cores."""
BACKWARD_SHARE = 2 / 3
"""Assumed share of a step that can hide an all-reduce."""
BUCKET = 25 * 2**20
"""Bytes of gradients in one all-reduce: the default of DistributedDataParallel."""
LATENCY, LATENCY_HOSTS = 25e-6, 100e-6
"""Assumed seconds that each all-reduce adds, whatever its size: within a host, and between hosts."""
OPTIMIZER_BYTES = 28
"""AdamW reads weight, gradient and two moments of a parameter and writes three of them back, in fp32."""


@dataclass(frozen=True, slots=True)
class Host:
    """The usual host of eight GPUs; links in one direction."""

    link: float
    """Bytes/s from one GPU to the others."""
    network: float
    """Bytes/s out of the host, all network cards together."""
    cores: int
    """CPU cores."""


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU by its data sheet; docs/gpu.md names the sheets."""

    name: str
    reported: str
    """Its name in torch.cuda.get_device_name()."""
    peak: float
    """Dense bf16 FLOP/s of its tensor cores."""
    memory: float
    """Bytes/s of its own memory."""
    generation: int
    """Of PCIe, 16 lanes."""
    pcie: float
    """Bytes/s from the host: half of what is advertised for both directions together."""
    host: Host | None = None
    """None if several of these GPUs are not projected."""


A100 = Card("A100 80 GB SXM", "NVIDIA A100-SXM4-80GB", 312e12, 2.039e12, 4, 32e9, Host(300e9, 8 * 25e9, 128))
CARDS = (
    A100,
    Card("H100 SXM", "NVIDIA H100 80GB HBM3", 989e12, 3.35e12, 5, 64e9, Host(450e9, 8 * 50e9, 112)),
    Card("H200 SXM", "NVIDIA H200", 989e12, 4.8e12, 5, 64e9),
    Card("L4", "NVIDIA L4", 121e12, 300e9, 4, 32e9, Host(32e9, 12.5e9, 48)),
    Card("RTX 4090", "NVIDIA GeForce RTX 4090", 165.2e12, 1.008e12, 4, 32e9),
)
HOSTS = {card: card.host for card in CARDS if card.host}

Key = tuple[str, int, int]
"""Name of a network, image size in pixels, and batch size of one GPU."""

UNFUSED = "memory, nothing fused"
ANCHOR: Key = ("efficientnet_b0", 224, 256)
PUBLISHED: dict[Key, dict[int, int]] = {
    ANCHOR: {1: 2489, 8: 16_652, 16: 29_332},
    ("efficientnet_b4", 380, 128): {1: 331, 8: 2570, 16: 4813, 32: 9425, 64: 18_900},
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
    parameters: int = 0
    batch: int = 1

    def ceilings(self, card: Card) -> dict[str, float]:
        """Images/s of `card` by the one thing that takes time."""
        return {
            "arithmetic": card.peak / self.costs.training_flops,
            UNFUSED: card.memory / self.costs.training_bytes,
            "memory, all fused": card.memory / self.least_bytes,
            "PCIe": card.pcie / square_bytes(SQUARE),
        }

    def step_bytes(self) -> float:
        """Bytes that a step moves, with the optimizer, if nothing is fused."""
        return self.batch * self.costs.training_bytes + OPTIMIZER_BYTES * self.parameters

    def seconds(self, card: Card, gpus: int, memory_share: float) -> float:
        """Seconds of a step on each of several GPUs; `memory_share` is the share of the bandwidth that is reached."""
        arithmetic = self.batch * self.costs.training_flops / (card.peak * PEAK_SHARE)
        alone = max(arithmetic, self.step_bytes() / (card.memory * memory_share))
        if gpus == 1:
            return alone
        host, several_hosts, gradients = HOSTS[card], gpus > HOST_GPUS, 4 * self.parameters
        slowest = min(host.link, host.network) if several_hosts else host.link
        exchange = 2 * (gpus - 1) / gpus * gradients / slowest
        latency = math.ceil(gradients / BUCKET) * (LATENCY_HOSTS if several_hosts else LATENCY)
        return alone + max(0.0, exchange - BACKWARD_SHARE * alone) + latency

    def rate(self, card: Card, gpus: int, memory_share: float) -> float:
        """Images/s of all GPUs together."""
        return gpus * self.batch / self.seconds(card, gpus, memory_share)


@cache
def work_of(model: str, image_size: int, batch: int, precision: str = "bf16") -> Work:
    """The work of training timm's `model`, counted on tensors without data."""
    import torch

    from hemafast.bench.costs import DTYPES, least_training_bytes, model_costs
    from hemafast.model import build_model

    with torch.device("meta"):
        network = build_model(model, CLASSES, image_size)
    asked = (network, image_size, DTYPES[precision], batch)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Work(model_costs(*asked), least_training_bytes(*asked), parameters, batch)


def memory_share() -> float:
    """The share of the A100's memory bandwidth that the first published rate implies; assumed for every card."""
    return work_of(*ANCHOR).step_bytes() / ANCHOR[2] * PUBLISHED[ANCHOR][1] / A100.memory


def presets_of() -> dict[Key, list[str]]:
    """What is planned for, and the presets that need it."""
    asked: dict[Key, list[str]] = {}
    for name, preset in PRESETS.items():
        config = checked(TrainConfig, preset())
        if isinstance(config.batch_size, int):
            asked.setdefault((config.model, config.image_size, config.batch_size), []).append(name)
    for model in ("efficientnet_b0", "resnet18"):
        asked.setdefault((model, 224, 256), ["none: for day one"])
    return asked


def square_bytes(side: int) -> int:
    """Bytes of a square of uint8 RGB pixels."""
    return 3 * side**2


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """The tables of docs/gpu.md."""
    return {
        "gpu_work": _work(),
        "gpu_pixels": _pixels(),
        "gpu_cards": _cards(),
        "gpu_ceilings": _ceilings(),
        "gpu_assumptions": _assumptions(),
        "gpu_published": _published(),
        "gpu_projection": _projection(),
        "gpu_loader": _loader(results["loaders"]),
        "gpu_steps": _steps(),
        "gpu_commands": _commands(),
    }


def _work() -> str:
    """What an image costs."""
    rows = []
    for key, presets in presets_of().items():
        found = work_of(*key)
        costs = found.costs
        rows.append(
            [
                _named(key),
                ", ".join(presets),
                f"{costs.forward_flops / 1e9:.2f}",
                f"{costs.training_flops / 1e9:.2f}",
                f"{costs.training_flops / costs.forward_flops:.2f}",
                *(f"{moved / 1e6:.0f}" for moved in (costs.forward_bytes, costs.training_bytes, found.least_bytes)),
                *(f"{costs.training_flops / moved:.0f}" for moved in (costs.training_bytes, found.least_bytes)),
            ]
        )
    operations = "GFLOP forward | GFLOP training | training / forward"
    moved = "MB moved forward | MB moved, nothing fused | MB moved, all fused"
    return table(f"| presets | {operations} | {moved} | FLOP a byte, nothing fused | all fused", rows)


def _pixels() -> str:
    """What crosses PCIe for an image."""
    square, view = square_bytes(SQUARE), square_bytes(224)
    crossing = {
        f"`--input packed`: a square of {SQUARE} px, cut on the GPU": square,
        "a view of 224 px, cut on the host": view,
        "a view of 224 px in fp32, as plain PyTorch sends it": 4 * view,
        "a view of 128 px, cut on the host": square_bytes(128),
    }
    links = {card.generation: card.pcie for card in CARDS}
    rows = [
        [name, f"{size / 1e3:,.1f}", *(f"{rate / size:,.0f}" for rate in links.values())]
        for name, size in crossing.items()
    ]
    rows.append(["`--input resident`: nothing, once the squares are there", "0", *("no limit" for _ in links)])
    once = ", ".join(f"{IMAGES * square / rate:.2f} s over PCIe Gen{number}" for number, rate in links.items())
    resident = (
        f"Resident, {IMAGES:,} squares are {IMAGES * square / 1e9:.1f} GB on the device, copied once: at least {once}. "
        f"Cutting a view of 224 px then reads at most {square / 1e3:.0f} kB there and writes {view / 1e3:.0f} kB."
    )
    limits = " | ".join(f"images/s by PCIe Gen{number}" for number in links)
    return table(f"what crosses | kB an image | {limits}", rows, resident)


def _cards() -> str:
    """The data sheets."""
    rows = [
        [
            card.name,
            f"{card.peak / 1e12:g}",
            f"{card.memory / 1e9:,.0f}",
            f"{card.peak / card.memory:.0f}",
            f"Gen{card.generation} x16, {card.pcie / 1e9:.0f}",
            *_host(card.host),
            f"`{card.reported}`",
        ]
        for card in CARDS
    ]
    own = "TFLOP/s, bf16, dense | memory, GB/s | FLOP a byte at which both bind | PCIe, GB/s"
    host = "link within a host, GB/s | network of a host, GB/s | CPU cores of a host"
    return table(f"card | {own} | {host} | name in torch", rows)


def _host(host: Host | None) -> list[str]:
    return [f"{host.link / 1e9:g}", f"{host.network / 1e9:g}", str(host.cores)] if host else ["", "", ""]


def _ceilings() -> str:
    """What limits each network on each card."""
    rows = []
    for key in shown_ceilings():
        for card in CARDS:
            found = work_of(*key).ceilings(card)
            fused = {name: rate for name, rate in found.items() if name != UNFUSED}
            rates = [f"{rate:,.0f}" for rate in found.values()]
            rows.append([_named(key), card.name, *rates, _smallest(found), _smallest(fused)])
    names = " | ".join(work_of(*ANCHOR).ceilings(A100))
    return table(f"| card | {names} | smallest | smallest if all is fused", rows)


def shown_ceilings() -> list[Key]:
    """Each network once at its first batch size, and the one with a published rate."""
    first: dict[tuple[str, int], Key] = {}
    for key in presets_of():
        first.setdefault(key[:2], key)
    return [*first.values(), ANCHOR]


def _assumptions() -> str:
    """What is neither counted nor on a data sheet."""
    return "\n".join(
        [
            f"- Convolutions reach {_percent(PEAK_SHARE, 0)} of the peak. Memory reaches {_percent(memory_share())} of "
            "its bandwidth on every card: the share that the first published rate above implies.",
            f"- Backward is {_percent(BACKWARD_SHARE, 0)} of a step and hides an all-reduce of that length.",
            f"- Gradients travel in buckets of {BUCKET / 2**20:.0f} MiB. Each adds a latency of {1e6 * LATENCY:.0f} us "
            f"within a host and {1e6 * LATENCY_HOSTS:.0f} us between hosts. Nothing hides it.",
            f"- AdamW moves {OPTIMIZER_BYTES} bytes per parameter. A host holds {HOST_GPUS} GPUs.",
        ]
    )


def _published() -> str:
    """Published rates, their shares of the ceilings, and the rates that the model gives."""
    rows = []
    for key, rates in PUBLISHED.items():
        work = work_of(*key)
        for gpus, rate in rates.items():
            ours = work.rate(A100, gpus, memory_share())
            shares = _shares(rate / gpus, work.ceilings(A100))
            efficiency = _percent(rate / gpus / rates[1], 0)
            off = f"{100 * (ours / rate - 1):+.0f} %"
            rows.append([_named(key), str(gpus), f"{rate:,}", efficiency, *shares, f"{ours:,.0f}", off])
    names = " | ".join(f"of {name}" for name in work_of(*ANCHOR).ceilings(A100))
    return table(f"| GPUs | published, images/s | efficiency | {names} | model, images/s | off by", rows)


def _projection() -> str:
    """Training on 1, 8 and 64 GPUs."""
    rows = []
    for key in [(model, 224, batch) for model in MODELS for batch in BATCHES]:
        for card in HOSTS:
            rates = [work_of(*key).rate(card, gpus, memory_share()) for gpus in GPUS]
            efficiency = [_percent(rate / gpus / rates[0]) for rate, gpus in zip(rates, GPUS, strict=True)]
            epochs = [f"{IMAGES / rate:.2g}" for rate in rates]
            rows.append([_named(key), card.name, *(f"{rate:,.0f}" for rate in rates), *efficiency[1:], *epochs])
    header = "| card | images/s on 1 | on 8 | on 64 | efficiency on 8 | on 64 | epoch on 1, s | on 8, s | on 64, s"
    return table(header, rows)


def _loader(result: Mapping[str, Any]) -> str:
    """The cores that the loader of a host needs, if they are as fast as those of the benchmark."""
    sides = {"crop and eight symmetries": "hemafast_packed", "the reference's augmentation": "hemafast_seed_packed"}
    rates = {name: result["sides"][side]["images_per_second"]["median"] for name, side in sides.items()}
    rows = []
    for model in MODELS:
        for card, host in HOSTS.items():
            need = work_of(model, 224, max(BATCHES)).rate(card, HOST_GPUS, memory_share())
            cores = [need / (rate / result["threads"]) for rate in rates.values()]
            enough = "yes" if max(cores) <= host.cores else "no"
            rows.append([model, card.name, f"{need:,.0f}", *(f"{some:.1f}" for some in cores), str(host.cores), enough])
    names = " | ".join(f"cores, {name} ({rate:,.0f} images/s on {result['threads']})" for name, rate in rates.items())
    return table(f"| card | {HOST_GPUS} GPUs need, images/s | {names} | cores of a host | enough?", rows)


def _steps() -> str:
    """Steps that few images give to many GPUs."""
    rows = [
        [str(gpus), str(batch), f"{gpus * batch:,}", f"{steps:,}", f"{30 * steps:,}"]
        for batch in BATCHES
        for gpus in GPUS
        for steps in [math.ceil(IMAGES / gpus / batch)]
    ]
    return table("GPUs | batch of each | images a step | steps an epoch | steps in 30 epochs", rows)


def _commands() -> str:
    """What the script of day one runs."""
    command = ["bash", str(DAY_ONE), "--dry-run"]
    # Without the environment: PATIENCE and VENV change the commands.
    shown = subprocess.run(command, cwd=ROOT, env={}, capture_output=True, text=True, check=True)
    return f"```sh\n{shown.stdout}```"


def comparison(file: Path) -> str:
    """Measured rates of a result of `hemafast bench`, and their shares of the card's ceilings.

    Raises HemafastError if `file` is no such result, or was measured without a GPU.
    """
    result = read_result(file)
    bench, machine = result["bench"], result["machine"]
    if "gpu" not in machine:
        raise HemafastError(f"{file} was measured without a GPU.", "Name a result of `hemafast bench --device cuda`.")
    key = (bench["model"], bench["image_size"], bench["batch_size"])
    rates = {name: result["stations"][name]["images_per_second"]["median"] for name in (STEP, WHOLE, LOADER)}
    title = f"{_named(key)}, {machine['precision']}, torch.compile {machine['torch.compile']}, {machine['gpu']}"
    found = _comparable(key, machine)
    if found is None:
        rows = [[name, f"{rate:,.0f}"] for name, rate in rates.items()]
        return f"{title}: no ceilings. They need a known card, and bf16 or fp16.\n\n{table('| images/s', rows)}"
    views = {"PCIe": found["PCIe"]}  # the only ceiling of the loader
    rows = [
        [name, f"{rate:,.0f}", *_shares(rate, {of: (views if name == LOADER else found).get(of) for of in found})]
        for name, rate in rates.items()
    ]
    limits, of = (
        ["ceiling", "", *(f"{rate:,.0f}" for rate in found.values())],
        " | ".join(f"of {name}" for name in found),
    )
    return f"{title}\n\n{table(f'| images/s | {of}', [*rows, limits])}"


def _comparable(key: Key, machine: Mapping[str, str]) -> dict[str, float] | None:
    """The ceilings of the measured card; tensor cores do fp16 as fast as bf16 on all these cards."""
    card = next((card for card in CARDS if card.reported == machine["gpu"]), None)
    if card is None or machine["precision"] not in ("bf16", "fp16"):
        return None
    return work_of(*key, machine["precision"]).ceilings(card)


def _shares(rate: float, found: Mapping[str, float | None]) -> list[str]:
    return ["" if top is None else _percent(rate / top) for top in found.values()]


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def _smallest(found: Mapping[str, float]) -> str:
    return min(found, key=lambda name: found[name])


def _named(key: Key) -> str:
    model, image_size, batch_size = key
    return f"{model}, {image_size} px, batch {batch_size}"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def plan() -> None:
    """What GPUs could do; docs/gpu.md shows it."""


@app.command()
def compare(results: Annotated[list[Path], typer.Argument(help="Files that `hemafast bench --json` wrote.")]) -> None:
    """Show measured rates beside the ceilings of their card."""
    typer.echo("\n\n".join(comparison(file) for file in results))


if __name__ == "__main__":
    try:
        app()
    except HemafastError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
