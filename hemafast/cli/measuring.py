"""What this machine can do: bench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hemafast import config
from hemafast.cli.common import TRAIN_DEFAULTS, Data, Quiet, Verbose, app, console_of, wide_console


@app.command(epilog="Example: `hemafast bench --json bench.json`")
def bench(
    data: Data = TRAIN_DEFAULTS.data,
    model: Annotated[str, typer.Option(help="Any timm image model.")] = "efficientnet_b0",
    image_size: Annotated[int, typer.Option(min=32, help="Side in pixels of what the network sees.")] = 224,
    batch_size: Annotated[int, typer.Option(min=2, help="Images a training step.")] = 32,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the loaders.", show_default="the cores, at most 8")
    ] = None,
    device: Annotated[config.Device, typer.Option(help="Where the model runs.")] = "auto",
    amp: Annotated[config.Amp, typer.Option(help="Autocast precision.")] = "auto",
    compile: Annotated[config.Compile, typer.Option(help="torch.compile.")] = "auto",
    rounds: Annotated[int, typer.Option(help="Measurements of each station, at least 3.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Least length of a measurement.")] = 2.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything measured to this file.")] = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Measure loader and training step, alone and together, beside plain PyTorch, and say what training is bound by.

    Each station runs in its own process; all take turns, round after round, so that a machine that slows down slows all
    of them. About four minutes on two cores.
    """
    from hemafast.bench.run import run_bench
    from hemafast.bench.stations import Bench
    from hemafast.tables import bench_table

    console = console_of(verbose=verbose, quiet=quiet)
    chosen = Bench(
        data=data,
        model=model,
        image_size=image_size,
        batch_size=batch_size,
        threads=threads,
        device=device,
        amp=amp,
        compile=compile,
    )
    with console.status("measuring") as status:
        result = run_bench(
            chosen, rounds=rounds, seconds=seconds, on_round=lambda name: status.update(f"measuring: {name}")
        )
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    results = wide_console()
    results.print(bench_table(result))
    results.print(result["bound_by"], highlight=False)
