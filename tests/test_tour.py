"""The notebook of the tour: it runs, and the repository holds it with its plots."""

import re
import sys
from pathlib import Path

import nbformat
import pytest

from hemafast import open_dataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from run_tour import NOTEBOOK, execute

SMALL = """
from pathlib import Path

source = Path("tour")
drawn_cells = 120
training = {"model": "test_efficientnet", "pretrained": "no", "image_size": 64, "epochs": 1, "device": "cpu"}
training |= {"amp": "off", "track": ()}
""".strip()


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def plots(cell):
    return [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]


@pytest.mark.nightly
def test_the_notebook_runs_from_archives_to_a_umap(tmp_path):
    cells = code_cells(execute(tmp_path, parameters=SMALL))
    (predicted,) = [cell for cell in cells if "model.predict" in cell.source]
    assert predicted.outputs[0].text.startswith(f"{len(open_dataset(tmp_path / 'tour/prepared').split('val'))} images")
    assert "By domain" in cells[-1].source
    assert plots(cells[-1])


def test_the_notebook_is_stored_with_plots_and_nothing_of_the_machine_that_ran_it():
    text = NOTEBOOK.read_text(encoding="utf-8")
    cells = code_cells(nbformat.reads(text, as_version=4))
    outputs = [output for cell in cells for output in cell.outputs]
    assert [len(plots(cell)) for cell in cells].count(1) == 3
    assert plots(cells[-1])
    assert all(cell.execution_count for cell in cells)
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    shown = [str(value) for output in outputs for kind, value in output.get("data", {}).items() if "image" not in kind]
    shown += [output.text for output in outputs if output.output_type == "stream"]
    assert not re.findall(r"/(?:home|root|tmp|work|usr|Users)/\S+", "\n".join(shown))
    assert "Drawn cells, not photographs." in "\n".join(shown)
    assert len(text) < 1_000_000
