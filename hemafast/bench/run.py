"""Measure all stations in turn, round after round, and find what limits training."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import chain, count
from statistics import median
from typing import Any

from hemafast.bench.ceilings import COPY_BYTES, PRODUCT_FLOPS
from hemafast.bench.costs import step_costs
from hemafast.bench.headroom import bound_by, headroom
from hemafast.bench.result import COPY, FEWEST_ROUNDS, PRODUCT, SCHEMA, BenchFacts, spread
from hemafast.bench.settings import Bench
from hemafast.bench.stations import RATIOS, UNITS, groups
from hemafast.bench.worker import Round, Worker
from hemafast.engine.trial import decide_precision
from hemafast.errors import HemafastError
from hemafast.progress import SILENT, Progress

Result = dict[str, Any]


def run_bench(bench: Bench, *, rounds: int, seconds: float, peers: bool = True, progress: Progress = SILENT) -> Result:
    """Measure every station `rounds` times for at least `seconds`, in turn, after a warm-up round of each.

    With `peers` also those of a plain PyTorch script. Returns the content of --json, as `result.BenchFacts` describes
    it. Raises HemafastError if `rounds` is below three, if the data is not prepared, or if a station fails.
    """
    if rounds < FEWEST_ROUNDS:
        raise HemafastError(f"{rounds} rounds are too few for a spread.", f"Use --rounds {FEWEST_ROUNDS} or more.")
    info = bench.dataset.info
    settings, _ = decide_precision(bench.settings, bench.dataset.counts("train"))
    # The source of the pixels is chosen once: what one station keeps on the device would change the choice of the next.
    machine, graph = replace(bench, settings=settings).machine_and_graph()
    settings = replace(settings, input=graph.source)
    bench = replace(bench, settings=settings)
    # In a thread: the warm-up takes longer, because it imports the same libraries and builds the same network.
    with ThreadPoolExecutor(1) as aside:
        network = settings.model, len(info.classes), settings.image_size
        costs = aside.submit(step_costs, *network, machine.precision, bench.batch_size)
        warm_up, measured = _measure(bench, machine.device, rounds, seconds, peers, progress)
    result: Result = {
        "schema": SCHEMA,
        "bench": bench.to_plain(),
        "data": {"fingerprint": info.fingerprint, "drawn": info.drawn, "domains": list(info.domains)},
        "machine": machine.facts | {choice.name: choice.value for choice in machine.choices},
        "warm_up_rounds": 1,
        "rounds": rounds,
        "seconds": seconds,
        "stations": {
            name: summary(warm_up[name], found, UNITS.get(name, "images")) for name, found in measured.items()
        },
        "ratios": {
            ours: _ratio(measured[ours], measured[peer]) | {"to": peer}
            for ours, peer in RATIOS.items()
            if peer in measured
        },
        "matrix_product_flops": spread([PRODUCT_FLOPS[machine.device] * _rate(one) for one in measured[PRODUCT]]),
        "memory_copy_bytes": spread([COPY_BYTES[machine.device] * _rate(one) for one in measured[COPY]]),
        "costs": asdict(costs.result()),
    }
    result["headroom"] = headroom(result)
    result["bound_by"] = bound_by(result)
    BenchFacts.model_validate(result)
    return result


def _measure(
    bench: Bench, device: str, rounds: int, seconds: float, peers: bool, progress: Progress
) -> tuple[dict[str, Round], dict[str, list[Round]]]:
    """The warm-up of each station, and its measurements."""
    with ExitStack() as stack:
        teams = [
            (stack.enter_context(Worker(group.makes, bench, reads_ahead=group.reads_ahead)), list(group.makes))
            for group in groups(device, peers=peers)
        ]
        places = [(worker, name) for worker, names in teams for name in names]
        begun, total = count(), len(places) * (1 + rounds)

        def one_round(worker: Worker, name: str) -> Round:
            progress.start(f"measuring: {name}", total, unit="rounds", done=next(begun))
            return worker.run(name, seconds)

        # The warm-up: imports, caches, first allocations. All processes at once, because nothing is counted.
        with ThreadPoolExecutor(len(teams)) as pool:
            warm = pool.map(lambda team: [(name, one_round(team[0], name)) for name in team[1]], teams)
            warm_up = dict(chain.from_iterable(warm))
        measured: dict[str, list[Round]] = {name: [] for _, name in places}
        for _ in range(rounds):
            for worker, name in places:
                measured[name].append(one_round(worker, name))
        for worker, _ in teams:
            worker.dismiss()
        progress.finish()
    return warm_up, measured


def summary(warm_up: Round, rounds: list[Round], unit: str) -> dict[str, Any]:
    """The measurements of a station that counts `unit`, as `result.StationFacts` describes them."""
    return {
        "unit": unit,
        "images_per_second": spread([_rate(one) for one in rounds]),
        "images_per_second_overall": sum(one.images for one in rounds) / sum(one.seconds for one in rounds),
        "images_per_cpu_second": spread([one.images / max(one.cpu_seconds, 1e-9) for one in rounds]),
        "seconds_a_step": _step_spread(rounds),
        "compile_seconds": sum(one.compile_seconds for one in (warm_up, *rounds)),
        "page_faults_a_step": spread([one.page_faults / one.steps for one in rounds]),
        "data_wait_share": spread([one.waited / one.seconds for one in rounds]),
        "peak_memory": max(one.peak_memory for one in rounds),
        "peak_device_memory": max(one.peak_device_memory for one in rounds),
        "rounds": [asdict(one) for one in rounds],
    }


def _step_spread(rounds: list[Round]) -> dict[str, float]:
    """Median of the rounds, and the tenths at both ends of the extreme rounds."""
    low, middle, high = zip(*(one.step_seconds for one in rounds), strict=True)
    return {"median": median(middle), "min": min(low), "max": max(high)}


def _rate(one: Round) -> float:
    return one.images / one.seconds


def _ratio(ours: list[Round], peer: list[Round]) -> dict[str, Any]:
    """Our images/s over the peer's, paired by round."""
    return spread([_rate(a) / _rate(b) for a, b in zip(ours, peer, strict=True)])
