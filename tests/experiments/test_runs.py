"""Several runs in one call: found, gone on with, scored, or failed and said."""

import signal
from unittest.mock import Mock

import pytest

from hemafast.config import PrepareConfig
from hemafast.engine.step import TrainStep
from hemafast.errors import HemafastError, StoppedError
from hemafast.experiments.runs import Failed, Scored, run_all, scored_before, write_files
from hemafast.preparation.build import prepare
from hemafast.run_folder import read_metrics


@pytest.fixture
def config(settings, tmp_path):
    return settings(tmp_path / "out")


def test_a_run_is_trained_and_scored_and_then_found(config, dataset, updates, evaluations):
    ((name, outcome),) = run_all({"one": config})
    assert (name, len(updates)) == ("one", 6)
    assert outcome.metrics == read_metrics(outcome.folder)
    assert list(run_all({"one": config})) == [("one", outcome)]
    assert (len(updates), len(evaluations)) == (6, 1)
    assert scored_before(outcome.folder, dataset.info.fingerprint) == outcome
    assert scored_before(outcome.folder, "other data") is None


def test_every_run_has_its_page_though_the_call_before_could_not_write_it(config, evaluations):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hemafast.experiments.runs.write_report", Mock(side_effect=HemafastError("full", "make room")))
        assert list(run_all({"one": config})) == [("one", Failed("full make room"))]
    ((_, outcome),) = run_all({"one": config})
    assert (outcome.folder / "report.html").is_file()
    assert len(evaluations) == 1


def test_a_run_that_lost_its_scores_is_scored_again(config, updates, evaluations):
    ((_, outcome),) = run_all({"one": config})
    for lost in ("metrics.json", "predictions.csv"):
        (outcome.folder / lost).unlink()
        ((_, again),) = run_all({"one": config})
        assert again == outcome
    assert (len(updates), len(evaluations)) == (6, 3)


def test_a_run_that_was_stopped_is_gone_on_with(config, updates, monkeypatch):
    step = TrainStep.__call__
    with monkeypatch.context() as patch:

        def stop(self, *arguments, **named):
            step(self, *arguments, **named)
            if named["step"] == 2:
                signal.raise_signal(signal.SIGTERM)

        patch.setattr(TrainStep, "__call__", stop)
        with pytest.raises(StoppedError) as stopped:
            list(run_all({"one": config}))
    assert stopped.value.exit_code == 143
    ((_, outcome),) = run_all({"one": config})
    assert isinstance(outcome, Scored)
    assert updates == [0, 1, 2, 3, 4, 5]
    assert len(list(config.output.iterdir())) == 1


def test_a_failure_ends_no_other_run(config, settings, tmp_path):
    broken = settings(tmp_path / "broken", weights="no_such_weights.pth")
    (_, failed), (_, outcome) = run_all({"broken": broken, "one": config})
    assert isinstance(failed, Failed)
    assert "no_such_weights" in failed.reason
    assert isinstance(outcome, Scored)


def test_whatever_is_raised_is_a_reason_of_one_line(config, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr("hemafast.experiments.runs.train", fail)
    assert list(run_all({"one": config})) == [("one", Failed("RuntimeError: CUDA out of memory. Tried to allocate"))]


def test_a_finished_run_whose_data_was_prepared_anew_is_no_result(settings, tmp_path, prepared):
    config = settings(tmp_path / "out", data=tmp_path / "prepared")
    fields = {"source": prepared.folder.parent, "output": config.data, "pack_sizes": (64,)}
    prepare(PrepareConfig(**fields))
    ((_, first),) = run_all({"one": config})
    assert isinstance(first, Scored)
    prepare(PrepareConfig(**fields, seed=7))
    ((_, second),) = run_all({"one": config})
    assert isinstance(second, Failed)
    assert "fingerprint" in second.reason


def test_processes_that_torchrun_started_are_refused(config, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(HemafastError, match="without torchrun"):
        list(run_all({"one": config}))
    assert not config.output.exists()


def test_an_output_that_takes_no_files_is_an_error_that_names_it(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(HemafastError, match="out cannot be written"):
        write_files(tmp_path / "out", {"a": b""})
