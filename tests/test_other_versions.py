"""Data sets and runs that another version of hemafast wrote are opened, used, scored and resumed."""

import json

import hemafast as hf
from hemafast.config import PrepareConfig
from hemafast.preparation.build import prepare
from hemafast.preparation.schema import INFO
from hemafast.run_folder import MACHINE

OLD = "0.1.0"


def names_the_old_version(file):
    return json.dumps(OLD) in file.read_text(encoding="utf-8")


def test_a_data_set_of_another_version_opens_and_is_not_prepared_again(make_archive, tmp_path, monkeypatch):
    make_archive(tmp_path / "source" / "A.zip", {"basophil": 8, "monocyte": 8})
    settings = PrepareConfig(source=tmp_path / "source", output=tmp_path / "data", pack_sizes=(32,))
    with monkeypatch.context() as change:
        change.setattr("hemafast.versions.__version__", OLD)
        before = prepare(settings).info.fingerprint
    assert names_the_old_version(tmp_path / "data" / INFO)
    assert hf.open_dataset(tmp_path / "data").info.fingerprint == before
    assert not prepare(settings).fresh


def test_a_run_of_another_version_is_opened_used_scored_and_resumed(train_on, prepared, monkeypatch):
    with monkeypatch.context() as change:
        change.setattr("hemafast.versions.__version__", OLD)
        folder = train_on(prepared.folder, epochs=1)
    assert names_the_old_version(folder / MACHINE)
    run = hf.open_run(folder)
    images = [prepared.folder / path for path in prepared.files.manifest["path"][:3]]
    assert list(run.model().predict(images)["status"]) == ["ok"] * 3
    assert run.evaluate()["pooled"]["images"]
    assert hf.resume(run, epochs=2).history["epoch"].max() == 2
