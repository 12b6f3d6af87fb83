"""What this machine can do: bench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hemafast import config
from hemafast.cli.common import TRAIN_DEFAULTS, Data, Quiet, Verbose, app, console_of, progress, wide_console


@app.command(epilog="Example: `hemafast bench --json bench.json --plot bench.png`")
def bench(
    data: Data = TRAIN_DEFAULTS.data,
    model: Annotated[str, typer.Option(help="Any timm image model.")] = "efficientnet_b0",
    image_size: Annotated[int, typer.Option(min=32, help="Side in pixels of what the network sees.")] = 224,
    batch_size: Annotated[
        int | None, typer.Option(min=2, help="Images a training step.", show_default="32; 8 if --quick")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the loaders.", show_default="the cores, at most 8")
    ] = None,
    device: Annotated[config.Device, typer.Option(help="Where the model runs.")] = "auto",
    amp: Annotated[config.Amp, typer.Option(help="Autocast precision.")] = "auto",
    compile: Annotated[config.Compile, typer.Option(help="torch.compile.")] = "auto",
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
    compare: Annotated[Path | None, typer.Option(help="Say what changed since this file of --json.")] = None,
    result: Annotated[
        Path | None, typer.Option("--result", help="Measure nothing: show, draw or compare this file of --json.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything measured to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the roofline to this PNG.")] = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Measure every station of training, alone and together, and say what it is bound by and what to try next.

    From storage to checkpoint, beside the ceilings of this machine and a plain PyTorch script. Stations take turns,
    round after round, so that a machine that slows down slows all of them. About six minutes on two cores.
    """
    from hemafast.bench.compare import compare as compare_results
    from hemafast.bench.result import read_result
    from hemafast.bench.run import run_bench
    from hemafast.bench.settings import QUICK, THOROUGH, Bench
    from hemafast.cli.tables import bench_table, change_table, headroom_table
    from hemafast.files import write_whole

    console = console_of(verbose=verbose, quiet=quiet)
    before = read_result(compare) if compare else None
    if result is not None:
        found = read_result(result)
    else:
        usual = QUICK if quick else THOROUGH
        chosen = Bench(
            data=data,
            model=model,
            image_size=image_size,
            batch_size=batch_size or usual.batch_size,
            threads=threads,
            device=device,
            amp=amp,
            compile=compile,
        )
        with progress(console, "measuring", "rounds") as told:
            found = run_bench(
                chosen,
                rounds=usual.rounds if rounds is None else rounds,
                seconds=seconds or usual.seconds,
                peers=usual.peers if peers is None else peers,
                on_round=lambda name, done, total: told(done, total),
            )
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(json_file, lambda part: part.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8"))
    results = wide_console()
    results.print(bench_table(found))
    results.print(headroom_table(found))
    results.print(found["bound_by"], highlight=False)
    if plot is not None:
        from hemafast.bench.plots import roofline_figure
        from hemafast.pictures import save

        plot.parent.mkdir(parents=True, exist_ok=True)
        write_whole(plot, lambda part: save(roofline_figure(found), part))
    if before is not None:
        comparison = compare_results(before, found)
        results.print(change_table(comparison))
        for line in comparison.lines():
            results.print(line, highlight=False)
