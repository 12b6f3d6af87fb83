"""Whether this machine can do the work: doctor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hemafast.cli.common import Device, Quiet, Verbose, app, listen, wide_console
from hemafast.config import PrepareConfig, TrainConfig


@app.command(epilog="Examples: `hemafast doctor`, `hemafast doctor --json > doctor.json`")
def doctor(
    source: Annotated[
        Path, typer.Option(help="Folder of the archives and the prepared data set.")
    ] = PrepareConfig.source,
    output: Annotated[Path, typer.Option(help="Folder for runs.")] = TrainConfig.output,
    device: Device = "auto",
    model: Annotated[str, typer.Option(help="Network whose convolutions are checked.")] = TrainConfig.model,
    image_size: Annotated[
        int, typer.Option(min=16, max=1024, help="Side in pixels of the network's input.")
    ] = TrainConfig.image_size,
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask whether timm's hub answers.")] = False,
    forget: Annotated[
        bool,
        typer.Option("--forget", help="Only delete what trials have found on this machine, so that runs try again."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a bug report on standard output.")] = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Check versions, driver, processor, memory, disks, weights and convolutions; each line has a verdict and a remedy.

    Green is fine, yellow works but costs time or may fail later, red does not work (exit code 1). Takes about ten
    seconds. Writes 32 MiB to each folder to measure its disk, and removes them.
    """
    if forget:
        from hemafast.engine.answers import answers_file, forget_answers

        wide_console().print(f"forgot the answers of {forget_answers()} trials, kept in {answers_file()}")
        return
    from hemafast.cli.tables import doctor_table
    from hemafast.doctor import diagnose, report
    from hemafast.doctor.finding import Verdict, worst

    progress = listen(verbose=verbose, quiet=quiet or as_json)
    findings = diagnose(source, output, device, network=(model, image_size), offline=offline, progress=progress)
    if as_json:
        typer.echo(json.dumps(report(findings), indent=2))
    else:
        wide_console().print(doctor_table(findings))
    if worst(finding.verdict for finding in findings) is Verdict.RED:
        raise typer.Exit(1)
