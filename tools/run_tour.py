"""Run the notebook hemafast/examples/tour.ipynb again and keep its tables and plots.

python tools/run_tour.py

Do this after a change of the notebook or of what it shows.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parent.parent / "hemafast" / "examples" / "tour.ipynb"
_WIDGET = "application/vnd.jupyter.widget-view+json"
"""A progress bar, which shows nothing once its kernel is gone."""


def execute(folder: Path, parameters: str | None = None) -> nbformat.NotebookNode:
    """The notebook as it is after a run in an empty folder; progress bars are left out.

    Args:
        folder: where it runs and writes.
        parameters: replaces the cell that is tagged so.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    if parameters is not None:
        (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
        cell.source = parameters
    metadata = notebook.metadata
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=os.environ | {"PYTHONPATH": str(NOTEBOOK.parents[2])})
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if _WIDGET not in output.get("data", {})]
    notebook.metadata = metadata
    return notebook


def main() -> None:
    """Write the notebook with the outputs of this run."""
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(execute(Path(folder)), NOTEBOOK)


if __name__ == "__main__":
    main()
