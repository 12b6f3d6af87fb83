"""Tables of pages: each beside the script that measures it, written in place wherever the page is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "tools"))

import output  # scripts beside the package, not parts of it
import render_readme

ROOT = render_readme.ROOT
RANGE = {"median": 1.5, "min": 1.0, "max": 2.0}
PAGE = "# Title\n<!-- table: some -->\nold\n<!-- end -->\nprose, `<!-- table: other -->`, `<!-- end -->`\n"


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with one page in a folder, whose table is `new`."""
    monkeypatch.setattr(render_readme, "ROOT", tmp_path)
    monkeypatch.setattr(render_readme, "all_tables", lambda _: {"some": "new"})
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "page.md").write_text(PAGE)
    return tmp_path / "room" / "page.md"


def called(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["render_readme.py", *arguments])
    return render_readme.main()


def test_a_page_that_is_out_of_date_is_named_and_left_alone(repository, monkeypatch, capsys):
    assert called(monkeypatch, "--check") == 1
    assert "room/page.md is out of date. Run: python tools/render_readme.py" in capsys.readouterr().err
    assert repository.read_text() == PAGE


def test_a_table_is_written_in_place_on_any_page(repository, monkeypatch):
    assert called(monkeypatch) == 0
    assert repository.read_text() == PAGE.replace("old", "new")
    assert called(monkeypatch, "--check") == 0


def test_a_table_that_no_script_makes_ends_it(repository, monkeypatch):
    repository.write_text(PAGE.replace("some", "unknown"))
    with pytest.raises(SystemExit, match=r"page\.md asks for the table 'unknown'"):
        called(monkeypatch)


def test_results_are_read_when_they_are_asked_for(tmp_path):
    results = output.Results(tmp_path)
    (tmp_path / "one.json").write_text(json.dumps({"rounds": 3}))
    assert results["one"] == {"rounds": 3}
    (tmp_path / "one.json").unlink()
    assert results["one"] == {"rounds": 3}
    with pytest.raises(FileNotFoundError, match=r"two\.json"):
        results["two"]


def test_a_table_has_its_columns_its_rows_and_notes_below():
    text = output.table("| rate | ratio", [["a", output.ranged(RANGE), output.times(RANGE)]], "First.", "Second.")
    assert text.splitlines() == [
        "| | rate | ratio |",
        "|---|---|---|",
        "| a | 1.5 (1.0 to 2.0) | **1.50x** (1.00 to 2.00) |",
        "",
        "First.",
        "",
        "Second.",
    ]
    assert output.percentages(RANGE) == "150.0% (100.0% to 200.0%)"


def test_every_table_has_as_many_cells_as_columns():
    tables = render_readme.all_tables(output.Results(ROOT / "benchmarks" / "results"))
    for name, text in tables.items():
        for block in text.split("\n\n"):
            columns = {line.count("|") for line in block.splitlines() if line.startswith("|")}
            assert len(columns) <= 1, name


def test_scripts_are_imported_without_torch():
    scripts = [path.stem for path in (ROOT / "benchmarks").glob("*.py") if "def tables(" in path.read_text()]
    command = f"import sys, {', '.join(scripts)}; print('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"}
    done = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True, check=True)
    assert len(scripts) > 15
    assert done.stdout == "False\n"
