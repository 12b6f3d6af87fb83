"""Measure all stations in turn, round after round, and say what training is bound by."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from statistics import median
from typing import Any

from hemafast.bench.stations import STATIONS, Bench
from hemafast.bench.worker import Round, Worker
from hemafast.config import TrainConfig, checked
from hemafast.data.dataset import open_dataset
from hemafast.errors import HemafastError

SCHEMA = 1

Result = dict[str, Any]

RATIOS = {
    "loader, packed": "loader, torchvision",
    "loader, files": "loader, torchvision",
    "step": "step, plain PyTorch",
}
"""Stations that have a plain counterpart; the ratio is taken round by round."""

_FEWEST_ROUNDS = 3


def run_bench(
    bench: Bench, *, rounds: int, seconds: float, on_round: Callable[[str], None] = lambda name: None
) -> Result:
    """Measure every station `rounds` times for at least `seconds`, in turn, after a warm-up round of each.

    `on_round` is called with the name of the station before each round. Returns what --json writes. Raises
    HemafastError for fewer than three rounds, which have no spread.
    """
    if rounds < _FEWEST_ROUNDS:
        raise HemafastError(f"{rounds} rounds are too few to give a spread.", f"Use --rounds {_FEWEST_ROUNDS} or more.")
    info = open_dataset(bench.data).info
    bench = _with_precision(bench, len(info.classes))
    measured: dict[str, list[Round]] = {name: [] for name in STATIONS}
    with ExitStack() as stack:
        workers = {}
        for name in STATIONS:
            on_round(name)
            worker = Worker(name, STATIONS[name], bench, reads_ahead="loader" in name)
            workers[name] = stack.enter_context(worker)
            workers[name].run(seconds)  # warm-up: imports, caches, first allocations; not counted
        for _ in range(rounds):
            for name, worker in workers.items():
                on_round(name)
                measured[name].append(worker.run(seconds))
    stations = {name: _summary(found) for name, found in measured.items()}
    return {
        "schema": SCHEMA,
        "bench": {key: value for key, value in asdict(bench).items() if key != "data"},
        "data": {"fingerprint": info.fingerprint, "drawn": info.drawn, "domains": list(info.domains)},
        "machine": _machine_facts(bench),
        "rounds": rounds,
        "seconds": seconds,
        "stations": stations,
        "ratios": {ours: _ratio(measured[ours], measured[plain]) | {"to": plain} for ours, plain in RATIOS.items()},
        "bound_by": bound_by(stations),
    }


def _with_precision(bench: Bench, classes: int) -> Bench:
    """`bench` in the precision that `hemafast train` would take here."""
    from hemafast.engine.trial import decide_precision

    fields = ("data", "model", "image_size", "batch_size", "device", "amp")
    config, _ = decide_precision(checked(TrainConfig, {name: getattr(bench, name) for name in fields}), classes)
    return replace(bench, amp=config.amp)


def bound_by(stations: dict[str, Any]) -> str:
    """One sentence: which station limits training, and how much is lost between the stations."""
    loader, step, whole = (
        stations[name]["images_per_second"]["median"] for name in ("loader, packed", "step", "end to end")
    )
    slower = min(loader, step)
    headroom = max(loader, step) / slower
    limit, other = ("training step", "loader") if step <= loader else ("loader", "training step")
    advice = (
        "a smaller model or image size, or a GPU, is what would help"
        if limit == "training step"
        else "more loader threads are what would help"
    )
    return (
        f"Training is bound by the {limit}: {slower:,.0f} images/s, while the {other} could do {headroom:,.1f}x that. "
        f"End to end reaches {100 * whole / slower:.0f} % of it; {advice}."
    )


def _summary(rounds: list[Round]) -> dict[str, Any]:
    return {
        "images_per_second": spread([one.images / one.seconds for one in rounds]),
        "images_per_cpu_second": spread([one.images / max(one.cpu_seconds, 1e-9) for one in rounds]),
        "rounds": [asdict(one) for one in rounds],
    }


def _ratio(ours: list[Round], plain: list[Round]) -> dict[str, Any]:
    """Our images/s over the plain side's, paired by round."""
    return spread([a.images / a.seconds / (b.images / b.seconds) for a, b in zip(ours, plain, strict=True)])


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and largest."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def _machine_facts(bench: Bench) -> dict[str, str]:
    from hemafast.engine.machine import choose_machine

    machine = choose_machine(device=bench.device, amp=bench.amp, compiled=bench.compile, threads=bench.threads)
    chosen = {choice.name: choice.value for choice in machine.choices}
    return machine.facts | chosen
