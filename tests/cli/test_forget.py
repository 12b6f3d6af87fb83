"""`hemafast doctor --forget`."""

from typer.testing import CliRunner

from hemafast.cli import app


def test_doctor_forgets_what_trials_have_found_and_does_nothing_else(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = tmp_path / "hemafast" / "trials.json"
    file.parent.mkdir()
    file.write_text('{"a machine": {"precision": {}, "batch size": {}}, "another": {"precision": {}}}')
    done = CliRunner().invoke(app, ["doctor", "--forget"])
    assert (done.exit_code, file.exists()) == (0, False)
    assert done.output.startswith("forgot the answers of 3 trials")
