"""Write benchmarks/gpu_plan.md: what GPUs could do at most, by counted work and data sheets. Nothing is measured.

python benchmarks/gpu_plan.py                        # write
python benchmarks/gpu_plan.py --check                # exit 1 if the page is out of date
python benchmarks/gpu_plan.py compare RESULT_JSON... # what `hemafast bench --json` measured, beside these ceilings
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from hemafast.bench.costs import DTYPES, Costs, least_training_bytes, model_costs
from hemafast.bench.result import read_result
from hemafast.bench.stations import LOADER, STEP, WHOLE
from hemafast.config import TrainConfig, checked
from hemafast.errors import HemafastError
from hemafast.model import build_model
from hemafast.presets import PRESETS

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "benchmarks" / "gpu_plan.md"
DAY_ONE = ROOT / "benchmarks" / "gpu_day_one.sh"

CLASSES = 11
SQUARE = 256
"""Side in pixels of what `hemafast prepare` packs."""
IMAGES = 26_000
"""Training images of both archives: 80 % of 32,612."""
PRECISION = "bf16"


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU by its data sheet; gpu_plan.md names the sheets."""

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


A100 = Card("A100 80 GB SXM", "NVIDIA A100-SXM4-80GB", 312e12, 2.039e12, 4, 32e9)
CARDS = (
    A100,
    Card("H100 SXM", "NVIDIA H100 80GB HBM3", 989e12, 3.35e12, 5, 64e9),
    Card("H200 SXM", "NVIDIA H200", 989e12, 4.8e12, 5, 64e9),
    Card("L4", "NVIDIA L4", 121e12, 300e9, 4, 32e9),
    Card("RTX 4090", "NVIDIA GeForce RTX 4090", 165.2e12, 1.008e12, 4, 32e9),
)

UNFUSED = "memory, nothing fused"
ANCHOR, ANCHORED = ("efficientnet_b0", 224, 256), {1: 2489, 8: 16_652}
"""What was trained, and published images/s on A100 80 GB by number of GPUs; gpu_plan.md says where."""


@dataclass(frozen=True, slots=True)
class Work:
    """Training a network for an image."""

    costs: Costs
    least_bytes: int

    def ceilings(self, card: Card) -> dict[str, float]:
        """Images/s of `card` if nothing else took time, by what is waited for."""
        return {
            "arithmetic": card.peak / self.costs.training_flops,
            UNFUSED: card.memory / self.costs.training_bytes,
            "memory, all fused": card.memory / self.least_bytes,
            "PCIe": card.pcie / square_bytes(SQUARE),
        }


Key = tuple[str, int, int]
"""Name of a network, image size in pixels, and batch size."""


def presets_of() -> dict[Key, list[str]]:
    """What is planned for, and the presets that ask for it."""
    asked: dict[Key, list[str]] = {}
    for name, preset in PRESETS.items():
        config = checked(TrainConfig, preset())
        if isinstance(config.batch_size, int):
            asked.setdefault((config.model, config.image_size, config.batch_size), []).append(name)
    return asked | {(model, 224, 256): ["none: for day one"] for model in ("efficientnet_b0", "resnet18")}


@cache
def work_of(model: str, image_size: int, batch_size: int, precision: str = PRECISION) -> Work:
    """The work of training timm's `model`, counted on tensors without data."""
    with torch.device("meta"):
        network = build_model(model, CLASSES, image_size)
    asked = (network, image_size, DTYPES[precision], batch_size)
    return Work(model_costs(*asked), least_training_bytes(*asked))


def square_bytes(side: int) -> int:
    """Of uint8 RGB pixels."""
    return 3 * side**2


def work() -> str:
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
                f"{costs.forward_bytes / 1e6:.0f}",
                f"{costs.training_bytes / 1e6:.0f}",
                f"{found.least_bytes / 1e6:.0f}",
                f"{costs.training_flops / costs.training_bytes:.0f}",
                f"{costs.training_flops / found.least_bytes:.0f}",
            ]
        )
    moved = ["MB moved forward", "MB moved, nothing fused", "MB moved, all fused"]
    operations = ["GFLOP forward", "GFLOP training", "training / forward"]
    return _table(["", "presets", *operations, *moved, "FLOP a byte, nothing fused", "all fused"], rows)


def pixels() -> str:
    """What an image is before it is a tensor of bf16."""
    square, view = square_bytes(SQUARE), square_bytes(224)
    crossing = {
        f"`--input packed`: a square of {SQUARE} px, cut on the GPU": square,
        "a view of 224 px, cut on the host": view,
        "a view of 224 px in fp32, as plain PyTorch sends it": 4 * view,
        "a view of 128 px, cut on the host": square_bytes(128),
    }
    links = list({card.generation: card for card in CARDS}.values())
    rows = [
        [name, f"{size / 1e3:,.1f}", *(f"{card.pcie / size:,.0f}" for card in links)] for name, size in crossing.items()
    ]
    rows.append(["`--input resident`: nothing, once the squares are there", "0", *("no limit" for _ in links)])
    limits = [f"images/s by PCIe Gen{card.generation}" for card in links]
    once = ", ".join(f"{IMAGES * square / card.pcie:.2f} s over PCIe Gen{card.generation}" for card in links)
    resident = (
        f"Resident, {IMAGES:,} squares are {IMAGES * square / 1e9:.1f} GB on the device, copied once: at least {once}. "
        f"Cutting a view of 224 px then reads at most {square / 1e3:.0f} kB there and writes {view / 1e3:.0f} kB."
    )
    return f"{_table(['what crosses', 'kB an image', *limits], rows)}\n\n{resident}"


def cards() -> str:
    """The data sheets."""
    rows = [
        [
            card.name,
            f"{card.peak / 1e12:g}",
            f"{card.memory / 1e9:,.0f}",
            f"Gen{card.generation} x16",
            f"{card.pcie / 1e9:.0f}",
            f"{card.peak / card.memory:.0f}",
            f"`{card.reported}`",
        ]
        for card in CARDS
    ]
    units = ["TFLOP/s, bf16, dense", "memory, GB/s", "PCIe", "GB/s from the host", "FLOP a byte at which both bind"]
    return _table(["card", *units, "name in torch"], rows)


def ceilings() -> str:
    """What binds where."""
    rows = []
    for key in shown_ceilings():
        for card in CARDS:
            found = work_of(*key).ceilings(card)
            fused = {name: rate for name, rate in found.items() if name != UNFUSED}
            rates = [f"{rate:,.0f}" for rate in found.values()]
            rows.append([_named(key), card.name, *rates, _smallest(found), _smallest(fused)])
    names = list(work_of(*ANCHOR).ceilings(A100))
    return _table(["", "card", *names, "smallest", "smallest if all is fused"], rows)


def shown_ceilings() -> list[Key]:
    """Each network once at its first batch size, and what is anchored."""
    first: dict[tuple[str, int], Key] = {}
    for key in presets_of():
        first.setdefault(key[:2], key)
    return [*first.values(), ANCHOR]


def anchor() -> str:
    """Published rates as shares of the ceilings."""
    found = work_of(*ANCHOR).ceilings(A100)
    rows = [
        [f"{_named(ANCHOR)}, {A100.name}", str(gpus), f"{rate:,}", f"{rate / gpus:,.0f}", *_shares(rate / gpus, found)]
        for gpus, rate in ANCHORED.items()
    ]
    return _table(["", "GPUs", "images/s", "a GPU", *(f"of {name}" for name in found)], rows)


def commands() -> str:
    """What the script of day one runs."""
    command = ["bash", str(DAY_ONE), "--dry-run"]
    # Without the environment: what PATIENCE and VENV are here is not what the page says.
    shown = subprocess.run(command, cwd=ROOT, env={}, capture_output=True, text=True, check=True)
    return f"```sh\n{shown.stdout}```"


BLOCKS: dict[str, Callable[[], str]] = {
    block.__name__: block for block in (work, pixels, cards, ceilings, anchor, commands)
}


def render(text: str) -> str:
    """The page with every block `<!-- table: NAME -->` ... `<!-- end -->` filled."""
    return re.sub(
        r"<!-- table: (\w+) -->.*?<!-- end -->",
        lambda match: f"<!-- table: {match[1]} -->\n{BLOCKS[match[1]]()}\n<!-- end -->",
        text,
        flags=re.DOTALL,
    )


def comparison(file: Path) -> str:
    """Measured rates of a result of `hemafast bench`, and their shares of the card's ceilings.

    Raises HemafastError if `file` is no such result, or was measured where there are no ceilings to compare with.
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
        return f"{title}: no ceilings, for want of a data sheet or of bf16 and fp16\n\n{_table(['', 'images/s'], rows)}"
    views = {"PCIe": found["PCIe"]}  # all that the loader waits for
    rows = [
        [name, f"{rate:,.0f}", *_shares(rate, {of: (views if name == LOADER else found).get(of) for of in found})]
        for name, rate in rates.items()
    ]
    limits = ["ceiling", "", *(f"{rate:,.0f}" for rate in found.values())]
    return f"{title}\n\n{_table(['', 'images/s', *(f'of {name}' for name in found)], [*rows, limits])}"


def _comparable(key: Key, machine: dict[str, str]) -> dict[str, float] | None:
    """The ceilings of where a result was measured; tensor cores do fp16 as fast as bf16 on all these cards."""
    card = next((card for card in CARDS if card.reported == machine["gpu"]), None)
    if card is None or machine["precision"] not in ("bf16", "fp16"):
        return None
    return work_of(*key, machine["precision"]).ceilings(card)


def _shares(rate: float, found: dict[str, Any]) -> list[str]:
    return ["" if top is None else f"{100 * rate / top:.1f} %" for top in found.values()]


def _smallest(found: dict[str, float]) -> str:
    return min(found, key=lambda name: found[name])


def _named(key: Key) -> str:
    model, image_size, batch_size = key
    return f"{model}, {image_size} px, batch {batch_size}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def page(
    context: typer.Context,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 if the page is out of date.")] = False,
) -> None:
    """Write gpu_plan.md anew."""
    if context.invoked_subcommand is not None:
        return
    before = PAGE.read_text(encoding="utf-8")
    after = render(before)
    if check:
        raise typer.Exit(int(before != after))
    PAGE.write_text(after, encoding="utf-8")


@app.command()
def compare(results: Annotated[list[Path], typer.Argument(help="Files that `hemafast bench --json` wrote.")]) -> None:
    """Set measured rates beside the ceilings of their card."""
    typer.echo("\n\n".join(comparison(file) for file in results))


if __name__ == "__main__":
    try:
        app()
    except HemafastError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
