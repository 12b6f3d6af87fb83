"""The library: what `import hemafast` offers, what it costs, and what it leaves behind in a process."""

import ast
import gc
import inspect
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from recorder import Recorder
from two_processes import pair_of_processes

import hemafast as hf
from hemafast.data.loader import Loader
from hemafast.engine.step import TrainStep

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "hemafast"
TINY = {
    "model": "test_resnet",
    "pretrained": "no",
    "image_size": 32,
    "batch_size": 8,
    "epochs": 2,
    "amp": "off",
    "compile": "off",
    "device": "cpu",
    "threads": 1,
}
PUBLIC = {
    "Dataset": {"classes", "counts", "domains", "images", "info", "loader", "samples", "split", "table"},
    "HemafastError": set(),
    "Loader": {
        *("again", "epoch", "image_size", "images", "load_state_dict", "position", "resized", "set_epoch"),
        *("sizes", "state_dict"),
    },
    "Model": {
        *("answers", "classes", "described", "discussed", "embed", "features", "logits", "members", "network"),
        *("predict", "probabilities"),
    },
    "PrepareConfig": set(),
    "Progress": {"advance", "finish", "say", "shows", "start"},
    "ProgressBar": {"advance", "finish", "say", "shows", "start"},
    "StoppedError": set(),
    "TrainConfig": set(),
    "TrainedRun": {
        *("adaptation", "config", "embed", "ensemble", "evaluate", "history", "metrics", "model", "predictions"),
        "report",
    },
    "adapt": set(),
    "count_patients": set(),
    "explain": set(),
    "export_run": set(),
    "list_runs": set(),
    "open_dataset": set(),
    "open_model": set(),
    "open_run": set(),
    "prepare": set(),
    "pretrain": set(),
    "push_run": set(),
    "resume": set(),
    "train": set(),
    "tune": set(),
}
"""Public names with their methods and properties: an addition is meant, and seen here."""


def python(script, **more):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True, **more
    ).stdout


# What it offers


def test_parts_are_read_apart_and_joined(prepared, tmp_path):
    asked = {"source": prepared.folder.parent, "output": tmp_path / "prepared", "pack_sizes": (64,), "shards": 3}
    parts = [hf.prepare(**asked, part=f"{number}/2") for number in (1, 2)]
    assert sum(part.images for part in parts) == len(hf.open_dataset(prepared.folder).table)
    assert all(part.fresh for part in parts)
    assert hf.prepare(**asked, join=True).info.fingerprint == prepared.info.fingerprint


def test_the_public_names_are_frozen():
    assert hf.__all__ == sorted(PUBLIC, key=lambda name: (name[0].islower(), name))
    for name, members in PUBLIC.items():
        if inspect.isclass(getattr(hf, name)) and members:
            own = {key for key in vars(getattr(hf, name)) if not key.startswith("_")}
            fields = set(getattr(getattr(hf, name), "__dataclass_fields__", {}))
            assert own - fields == members, name


def test_every_public_name_is_there_and_others_are_an_attribute_error():
    assert all(getattr(hf, name) is not None for name in hf.__all__)
    assert set(hf.__all__) <= set(dir(hf))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = hf.trian


def public_functions():
    for name in hf.__all__:
        thing = getattr(hf, name)
        if inspect.isfunction(thing):
            yield name, thing
        elif name in ("Dataset", "Model", "TrainedRun"):
            for key in ("loader", "predict", "embed", "model", "evaluate", "split"):
                if inspect.isfunction(vars(thing).get(key)):
                    yield f"{name}.{key}", vars(thing)[key]


@pytest.mark.parametrize(("name", "function"), list(public_functions()))
def test_docstrings_say_what_goes_in_what_comes_out_and_what_is_raised(name, function):
    text, parameters = inspect.getdoc(function), list(inspect.signature(function).parameters)
    assert re.match(r"[A-Z].*\.", text.splitlines()[0]), name
    described = [parameter for parameter in parameters if parameter != "self"]
    assert described == [] or "\nArgs:\n" in text
    arguments = text.partition("Args:\n")[2].partition("\n\n")[0]
    assert [parameter for parameter in described if f"    {parameter}: " not in f"\n{arguments}"] == []
    if function.__annotations__.get("return") not in (None, "None") and name != "Dataset.split":
        assert "\nReturns:\n" in text
        assert "\nRaises:\n" in text or name == "list_runs"


@pytest.mark.parametrize("name", ["Dataset", "Loader", "Model", "TrainedRun", "PrepareConfig", "TrainConfig"])
def test_classes_and_what_they_show_are_documented(name):
    kind = getattr(hf, name)
    assert kind.__doc__
    for key in PUBLIC[name]:
        assert inspect.getdoc(getattr(kind, key)), key


def test_arrays_are_documented_with_shapes_and_dtypes():
    assert "(n, d)" in hf.Model.embed.__doc__
    assert "float32" in hf.Model.predict.__doc__
    assert "uint8 (n, 3, size, size)" in hf.Dataset.loader.__doc__
    assert "int64 (n,)" in hf.Loader.__doc__


def test_importing_is_quick_and_loads_nothing_heavy():
    found = json.loads(
        python("""
            import json, sys, time
            began = time.process_time()
            import hemafast
            seconds = time.process_time() - began
            print(json.dumps([seconds, sorted({name.partition(".")[0] for name in sys.modules})]))
        """)
    )
    assert found[0] < 0.1
    assert not {"torch", "timm", "nvidia", "pandas", "numpy", "pydantic", "typer", "rich"} & set(found[1])


def test_preparing_stays_a_function_whatever_is_imported():
    assert (
        python("""
        import hemafast as hf
        import hemafast.preparation.build, hemafast.engine.trainer, hemafast.deploy.model
        print(callable(hf.prepare), callable(hf.train), callable(hf.explain))
    """).split()
        == ["True"] * 3
    )


@pytest.mark.nightly
def test_a_users_script_is_checked_against_the_annotations(tmp_path):
    (tmp_path / "good.py").write_text(
        textwrap.dedent("""
            import hemafast as hf
            import pandas as pd

            data: hf.Dataset = hf.open_dataset("Source/prepared")
            run: hf.TrainedRun = hf.train(data, preset="fast", epochs=4, progress=hf.ProgressBar())
            table: pd.DataFrame = run.model().predict(["cells/"])
            names: list[str] = data.classes
            for images, labels in data.loader("train", batch_size=8):
                print(images.shape, labels.shape)
        """)
    )
    (tmp_path / "bad.py").write_text('import hemafast as hf\n\nhf.open_run(3)\nhf.open_dataset("x").loader(7)\n')
    # In the house, with its settings: what the linter has looked at is not looked at again.
    command = [sys.executable, "-m", "mypy", *(str(tmp_path / name) for name in ("good.py", "bad.py"))]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    errors = [line for line in said.splitlines() if ": error: " in line]
    assert len(errors) == 2, said
    assert all("bad.py" in line and "error: Argument 1" in line for line in errors), said


# Quiet, and without exits


def sources():
    return [file for file in PACKAGE.rglob("*.py") if "cli" not in file.relative_to(PACKAGE).parts]


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_only_the_command_line_prints_exits_or_knows_a_console(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    if file.name == "__main__.py":
        return
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    # These run in processes of their own: a worker of the bench ends itself, and a comparison of layouts answers.
    allowed = {"worker.py": {"os._exit"}, "layout_trial.py": {"os._exit", "print"}}.get(file.name, set())
    assert not calls & {"print", "sys.exit", "exit", "os._exit"} - allowed
    imported = {
        name
        for node in ast.walk(tree)
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
    }
    assert not {name for name in imported if name.partition(".")[0] in ("rich", "typer")}
    assert "SystemExit" not in file.read_text(encoding="utf-8")
    assert not any(name.startswith("hemafast.cli") for name in imported)


@pytest.fixture(scope="module")
def data(prepared):
    return hf.open_dataset(prepared.folder)


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    return hf.train(data, preset="quick", output=tmp_path_factory.mktemp("runs"), **TINY)


def test_training_says_nothing_by_default(data, tmp_path, capfd):
    hf.train(data, output=tmp_path, **TINY)
    out, err = capfd.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert "epoch" not in err


def test_progress_is_told_of_training_validation_and_evaluation(data, tmp_path):
    told = Recorder()
    hf.train(data, output=tmp_path, progress=told, **TINY)
    stages = [(stage.what, stage.total) for stage in told.stages]
    assert [what for what, _ in stages] == ["training", "validating"] * 2 + ["evaluating", "writing the page"]
    assert stages[0][1] == len(data.split("train"))
    assert told.stages[0].done[-1] == len(data.split("train"))
    evaluating = told.stage("evaluating")
    assert evaluating.done[-1] == evaluating.total == len(data.split("val"))


# A run


def test_data_are_frames_and_lists(data):
    assert isinstance(data.table, pd.DataFrame)
    assert data.classes == list(data.info.classes)
    assert data.domains == ["Acevedo_20", "Matek_19"]
    assert set(data.split("val")["split"]) == {"val"}
    assert hf.open_dataset(data.folder, domains=["Matek_19"]).domains == ["Matek_19"]


def test_preparing_again_changes_nothing(data, prepared):
    again = hf.prepare(prepared.folder.parent, prepared.folder, pack_sizes=(64,), shards=3)
    assert again.info.fingerprint == data.info.fingerprint


def test_an_opened_run_shows_what_its_files_hold(made):
    opened = hf.open_run(made.folder)
    assert opened == made
    assert opened.config["epochs"] == 2
    assert opened.config == json.loads((made.folder / "config.json").read_text())
    assert opened.metrics == json.loads((made.folder / "metrics.json").read_text())
    assert list(opened.history["phase"]) == ["train", "val"] * 2
    assert len(opened.predictions) == opened.metrics["pooled"]["images"]
    assert (made.folder / "report.html").is_file()


def test_the_latest_run_is_found_by_name(made, monkeypatch):
    assert hf.open_run("latest", made.folder.parent).folder == made.folder
    with pytest.raises(hf.HemafastError, match="Did you mean latest") as caught:
        hf.open_run("latset", made.folder.parent)
    assert caught.value.remedy


def test_runs_are_a_frame_with_score_and_state(made):
    (row,) = hf.list_runs(made.folder.parent).to_dict("records")
    assert (row["name"], row["state"], row["epochs_done"]) == (made.folder.name, "finished", 2)
    assert row["macro_f1"] == made.metrics["pooled"]["macro_f1"]
    assert list(row["ci95"]) == made.metrics["pooled"]["ci95"]["macro_f1"]


def test_folders_that_are_no_runs_and_damaged_runs_do_not_hide_the_others(made, tmp_path, caplog):
    run = Path(shutil.copytree(made.folder, tmp_path / made.folder.name))
    damaged = Path(shutil.copytree(made.folder, tmp_path / "20991231_235959_damaged"))
    (damaged / "config.json").write_text("{")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"somebody": "else"}')
    assert hf.list_runs(tmp_path)["name"].tolist() == [run.name]
    assert f"not listed: {damaged} is not a run" in caplog.text
    assert "other" not in caplog.text.replace("another", "")


def test_a_config_a_file_and_names_give_the_same_settings(data, made, tmp_path):
    asked = made.config
    config = hf.TrainConfig(**{**asked, "output": tmp_path / "a"})
    by_config = hf.train(data, config)
    by_file = hf.train(data, made.folder / "config.json", output=tmp_path / "b")
    for run in (by_config, by_file):
        assert {**run.config, "output": ""} == {**asked, "output": ""}
        same = ["loss", "f1_macro", "grad_norm"]
        assert run.history[same].equals(made.history[same])


def test_a_model_predicts_and_embeds(made, data):
    files = [data.folder / path for path in data.split("val")["path"]]
    model = made.model()
    table, features = model.predict(files), model.embed(files)
    assert list(table["path"]) == list(map(str, files))
    np.testing.assert_allclose(table[list(model.classes)].sum(axis=1), 1, rtol=1e-5)
    assert features.dtype == np.float32
    assert features.shape[0] == len(files)
    assert list(table["label"]) == list(made.predictions["predicted"])


def test_other_data_has_scores_of_its_own(made, data, prepared, tmp_path):
    other = hf.prepare(prepared.folder.parent, tmp_path / "other" / "prepared", pack_sizes=(64,), seed=7)
    before = {path.name: path.read_bytes() for path in made.folder.iterdir() if path.is_file()}
    metrics = made.evaluate(other)
    assert metrics["data"]["fingerprint"] == other.info.fingerprint != data.info.fingerprint
    assert {path.name: path.read_bytes() for path in made.folder.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda data: hf.TrainConfig(epochs=0), "epochs = 0"),
        (lambda data: hf.TrainConfig(model="resnet18x"), "resnet18"),
        (lambda data: hf.TrainConfig(growing_from=(96,), image_size=64), "growing_from"),
        (lambda data: hf.TrainConfig(sync_norm=True, device="cpu"), "sync_norm"),
        (lambda data: hf.train(data, epoch=3), "epochs"),
        (lambda data: hf.train(data, preset="fats"), "fast"),
        (lambda data: hf.train("nowhere", preset="quick"), "nowhere"),
        (lambda data: hf.train(data, hf.TrainConfig(), preset="quick"), "preset"),
        (lambda data: hf.train(data, parallel=2), "parallel = 2"),
        (lambda data: hf.train(data, folds=3), "no folds, not 3"),
        (lambda data: hf.train(data, seeds=0), "seeds = 0"),
        (lambda data: hf.open_run("nowhere"), "nowhere"),
        (lambda data: hf.open_dataset("nowhere"), "nowhere"),
        (lambda data: hf.open_model("nowhere"), "nowhere"),
        (lambda data: hf.prepare("nowhere"), "nowhere"),
        (lambda data: hf.prepare(data.folder.parent, data.folder, part="1/2", join=True), "contradict"),
    ],
)
def test_mistakes_are_errors_of_one_family_with_a_remedy(data, tmp_path, monkeypatch, make, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(hf.HemafastError) as caught:
        make(data)
    assert words in str(caught.value)
    assert caught.value.remedy
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", [lambda data: hf.train(data, **TINY), lambda data: hf.resume("latest")])
def test_one_of_several_processes_is_refused_before_anything_is_written(data, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(hf.HemafastError, match=r"2 processes.*hemafast train"):
        call(data)
    assert not list(tmp_path.iterdir())


# Twice in one process, and interrupted


def process_state():
    gc.collect()
    me = psutil.Process()
    return me.num_fds(), me.num_threads(), threading.active_count()


@pytest.mark.slow
def test_training_again_leaks_nothing_and_leaves_the_process_as_it_was(data, tmp_path):
    hf.train(data, output=tmp_path, **TINY)  # libraries start their threads once
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - the generator that training seeds
    random.seed(5)
    before, handlers = process_state(), [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    environment, threads = dict(os.environ), torch.get_num_threads()
    runs = [hf.train(data, output=tmp_path, mixup=0.2, **TINY) for _ in range(2)]
    drawn = torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002
    assert process_state() == before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert (dict(os.environ), torch.get_num_threads()) == (environment, threads)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == drawn  # noqa: NPY002
    assert not torch.are_deterministic_algorithms_enabled()
    assert runs[0].history["loss"].equals(runs[1].history["loss"])


@pytest.mark.slow
def test_compiled_training_restores_the_compilers_flags(data, tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("compiling for a CPU needs g++")
    import torch._dynamo
    import torch._functorch.config

    before = torch._dynamo.config.fail_on_recompile_limit_hit, torch._functorch.config.force_non_lazy_backward_lowering
    hf.train(data, output=tmp_path, **{**TINY, "compile": "on", "epochs": 1})
    after = torch._dynamo.config.fail_on_recompile_limit_hit, torch._functorch.config.force_non_lazy_backward_lowering
    assert after == before


def test_several_seeds_are_runs_with_one_result(data, tmp_path):
    repeated = hf.train(data, output=tmp_path, seeds=2, parallel=1, **{**TINY, "epochs": 1})
    assert [run.config["seed"] for run in repeated.runs] == [42, 43] == repeated.table["seed"].tolist()
    scores = [run.metrics["pooled"]["macro_f1"] for run in repeated.runs]
    assert repeated.result["score"]["macro_f1"]["by_pass"] == pytest.approx(scores)
    assert [run.folder for run in repeated.runs] == sorted(repeated.folder.glob("seed_*/*"))


def test_an_interrupt_leaves_a_run_that_resumes_to_the_same_end(data, made, tmp_path, monkeypatch):
    step = TrainStep.__call__

    def step_and_signal(self, *arguments, **named):
        step(self, *arguments, **named)
        if named["step"] == 3:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", step_and_signal)
        with pytest.raises(hf.StoppedError) as stopped:
            hf.train(data, preset="quick", output=tmp_path, **TINY)
    assert "--resume" in stopped.value.remedy
    (row,) = hf.list_runs(tmp_path).to_dict("records")
    assert (row["state"], row["epochs_done"]) == ("stopped", 0)
    resumed = hf.resume(row["folder"])
    same = ["epoch", "phase", "loss", "accuracy", "f1_macro", "grad_norm"]
    assert resumed.history[same].equals(made.history[same])
    assert resumed.predictions.equals(made.predictions)


def test_a_second_interrupt_is_a_keyboard_interrupt(data, tmp_path, monkeypatch):
    step = TrainStep.__call__

    def step_and_signal(self, *arguments, **named):
        step(self, *arguments, **named)
        if named["step"] == 1:
            signal.raise_signal(signal.SIGINT)
            time.sleep(1.1)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TrainStep, "__call__", step_and_signal)
    with pytest.raises(KeyboardInterrupt):
        hf.train(data, output=tmp_path, **TINY)
    assert hf.list_runs(tmp_path)["state"].tolist() == ["stopped"]


def test_two_processes_cannot_train_in_one_folder(data, made, tmp_path):
    from hemafast.run_folder import locked

    folder = shutil.copytree(made.folder, tmp_path / "run")
    with locked(folder):
        assert hf.list_runs(tmp_path)["state"].tolist() == ["running"]
        with pytest.raises(hf.HemafastError, match="Another process"):
            hf.resume(folder, epochs=3)


# The loader in somebody else's loop


def rows_of_a_ddp_loop(folder, epochs):
    """What one process of a bare DDP loop trains on: losses, weights, and the number of images of each epoch."""
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    distributed.init_process_group("gloo")
    try:
        torch.manual_seed(0)
        loader = hf.open_dataset(folder).loader("train", batch_size=4, size=32, threads=1)
        flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 11))
        model = DistributedDataParallel(flat)
        optimizer, counts = torch.optim.SGD(model.parameters(), lr=1e-3), []
        for epoch in range(epochs):
            loader.set_epoch(epoch)
            counts.append(0)
            for images, labels in loader:
                torch.nn.functional.cross_entropy(model(images.float() / 255), labels).backward()
                optimizer.step()
                optimizer.zero_grad()
                counts[-1] += len(labels)
        return len(loader), counts, flat[1].weight.detach().sum().item()
    finally:
        distributed.destroy_process_group()


@pytest.mark.slow
def test_a_bare_ddp_loop_shares_every_image_between_its_processes(data):
    with pair_of_processes() as pair:
        (batches, counts, weight), (other_batches, other_counts, other_weight) = pair(
            rows_of_a_ddp_loop, data.folder, 2
        )
    assert batches == other_batches  # or one process would wait for the other without end
    images = len(data.split("train"))
    assert [mine + theirs for mine, theirs in zip(counts, other_counts, strict=True)] == [images, images]
    assert weight == other_weight


def test_a_loader_continues_within_an_epoch(data):
    straight = [labels.tolist() for _ in range(2) for _, labels in data.loader("train", batch_size=8, size=32)]
    del straight[len(straight) // 2 :]
    loader = data.loader("train", batch_size=8, size=32)
    first = [labels.tolist() for _, (_, labels) in zip(range(2), loader, strict=False)]
    resumed = data.loader("train", batch_size=8, size=32)
    resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    resumed.set_epoch(0)  # as some frameworks do
    assert first + [labels.tolist() for _, labels in resumed] == straight


# The page about the library


@pytest.mark.slow
@pytest.mark.parametrize(("page", "runs"), [("README.md", 1), ("docs/library.md", 2)])
def test_the_python_of_a_page_runs_from_top_to_bottom(tmp_path, monkeypatch, make_archive, page, runs):
    make_archive(tmp_path / "Source" / "Acevedo_20.zip", {"basophil": 40, "eosinophil": 40}, kind="JPEG", size=(76, 72))
    make_archive(tmp_path / "cells", {"basophil": 3}, kind="JPEG", size=(76, 72))
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text(encoding="utf-8")
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        small = block.replace('preset="fast", epochs=4', f"**{TINY!r}").replace('"resnet18"', '"test_resnet"')
        exec(compile(small, page, "exec"), names)
    assert len(names["labels"])
    assert len(hf.list_runs(tmp_path / "runs")) == runs
    if page == "docs/library.md":
        assert names["features"].shape[0] == 8
        assert np.isfinite(names["loss"].item())


def test_the_public_loader_hands_on_the_batches_of_training_without_a_copy(data, monkeypatch):
    made = []

    def kept(self, epoch=None, epoch_of_training=Loader.epoch):
        for batch in epoch_of_training(self, epoch):
            made.append(batch)
            yield batch

    monkeypatch.setattr(Loader, "epoch", kept)
    loader = data.loader("train", batch_size=8, size=32)
    pairs = list(loader)
    assert len(pairs) == len(loader) == len(made) > 1
    for (images, labels), batch in zip(pairs, made, strict=True):
        assert images is batch.images
        assert labels is batch.labels
