"""Tables for a terminal."""

import io

from rich.console import Console

from hemafast.cli.tables import run_table
from hemafast.run_folder import RunSummary


def test_the_table_of_runs_shows_names_as_they_are_and_leaves_missing_scores_empty():
    fields = {"folder": "runs/a", "model": "resnet18", "preset": "quick", "began": "2026-11-29T13:00:00"}
    scored = RunSummary(
        name="[red]a", data="d", state="finished", epochs_done=5, epochs=5, macro_f1=0.5, ci95=(0.25, 0.75), **fields
    )
    running = RunSummary(
        name="b", data="d", state="running", epochs_done=2, epochs=None, macro_f1=None, ci95=None, **fields
    )
    text = io.StringIO()
    Console(file=text, width=160).print(run_table([scored, running]))
    first, second = (line for line in text.getvalue().splitlines() if "resnet18" in line)
    for said in ("[red]a", "5 of 5", "0.500", "0.250 to 0.750", "2026-11-29 13:00:00"):
        assert said in first
    assert " 2 " in second
    assert "None" not in second
