"""What this machine can do: bench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hemafast.bench.settings import QUICK, THOROUGH, Bench, bench_settings
from hemafast.cli.common import ConfigFile, Quiet, Verbose, app, listen, refuse_missing_data, wide_console
from hemafast.cli.options import Asked, configured
from hemafast.config import TrainConfig

if TYPE_CHECKING:
    from hemafast.bench.compare import Comparison

_MEASURED = ("preset", "data", "model", "image_size", "batch_size", "policy", "threads", "device", "amp", "compile")
_DEFAULTS = {"preset": "b0", "model": "efficientnet_b0", "policy": "basic", "batch_size": "32; 8 if --quick"}


@app.command(epilog="Example: `hemafast bench --json bench.json --plot bench.png`")
@configured(
    TrainConfig, fields=TrainConfig.__dataclass_fields__.keys() - {"output"}, common=_MEASURED, defaults=_DEFAULTS
)
def bench(
    asked: Asked,
    config_file: ConfigFile = None,
    rounds: Annotated[
        int | None, typer.Option(help="Measurements of each station, at least 3.", show_default="5; 3 if --quick")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="Least length of a measurement.", show_default="2; 0.1 if --quick")
    ] = None,
    peers: Annotated[
        bool | None, typer.Option(help="Measure a plain PyTorch script too.", show_default="yes; no if --quick")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Short measurements, without a plain script: a minute on two cores.")
    ] = False,
    compare: Annotated[Path | None, typer.Option(help="Compare with this file of --json.")] = None,
    result: Annotated[
        Path | None, typer.Option("--result", help="Measure nothing: show, plot or compare this file of --json.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything measured to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Plot the roofline to this PNG.")] = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Measure every station of training, alone and together. Say what limits it and what to try next.

    From storage to checkpoint, beside the ceilings of this machine and a plain PyTorch script. Stations take turns,
    round after round, so that a machine that slows down slows all of them. Takes about six minutes on two cores.
    """
    usual, settings = QUICK if quick else THOROUGH, None
    if result is None:
        if config_file is None and "preset" not in asked:
            asked.setdefault("batch_size", usual.batch_size)
        settings = bench_settings(asked.pop("preset", None), config_file, **asked)
        refuse_missing_data(settings.data)
    progress = listen(verbose=verbose, quiet=quiet)
    from hemafast.bench.compare import compare as compare_results
    from hemafast.bench.result import read_result

    before = read_result(compare) if compare else None
    found = read_result(result) if result else None
    if settings is not None:
        from hemafast.bench.run import run_bench

        found = run_bench(
            Bench(settings),
            rounds=usual.rounds if rounds is None else rounds,
            seconds=seconds or usual.seconds,
            peers=usual.peers if peers is None else peers,
            progress=progress,
        )
    assert found is not None
    if json_file is not None:
        _write(json_file, found)
    _print(found, compare_results(before, found) if before else None)
    if plot is not None:
        _plot(plot, found)


def _write(file: Path, found: dict[str, Any]) -> None:
    from hemafast.files import write_text

    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(found, indent=2) + "\n")


def _plot(file: Path, found: dict[str, Any]) -> None:
    from hemafast.bench.plots import roofline_figure
    from hemafast.files import write_whole
    from hemafast.pictures import save

    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, lambda part: save(roofline_figure(found), part))


def _print(found: dict[str, Any], comparison: Comparison | None) -> None:
    from hemafast.cli.tables import bench_table, change_table, headroom_table

    results = wide_console()
    results.print(bench_table(found))
    results.print(headroom_table(found))
    results.print(found["bound_by"])
    if comparison is not None:
        results.print(change_table(comparison))
        for line in comparison.lines():
            results.print(line)
