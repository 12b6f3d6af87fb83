"""A folder for model hubs: everything in it works without hemafast."""

import json
import shutil
import subprocess
import sys

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
import yaml
from command import hemafast
from exported import CARD, noise, write_run
from huggingface_hub import ModelCard as HubCard
from PIL import Image

from hemafast.deploy.model import open_model
from hemafast.deploy.push import push_run
from hemafast.errors import HemafastError

FILES = {"README.md", "config.json", "preprocessing.json", "classify.py", "model.safetensors", "model.onnx"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Read it, never change it."""
    return write_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def pushed(run, tmp_path_factory):
    return push_run(run, tmp_path_factory.mktemp("pushed") / "folder", licence="cc-by-nc-4.0")


def test_the_folder_holds_what_is_told_and_nothing_else(pushed):
    assert {file.name for file in pushed.folder.iterdir()} == FILES == set(pushed.files)
    assert sum(file.stat().st_size for file in pushed.folder.iterdir()) == pushed.bytes


def test_timm_alone_loads_the_folder_and_answers_as_the_run(pushed, run):
    plain = timm.create_model(f"local-dir:{pushed.folder}", pretrained=True).eval()
    config = plain.pretrained_cfg
    assert (config["input_size"], config["crop_pct"]) == ((3, 32, 32), 1.0)
    assert config["label_names"] == list(CARD.classes)
    mean, std = (torch.tensor(config[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    images = noise(5)
    with torch.inference_mode():
        logits = plain((images / 255 - mean) / std)
    torch.testing.assert_close(logits, open_model(run, device="cpu").logits(images), atol=1e-4, rtol=1e-4)


def test_the_example_classifies_an_image_without_hemafast_torch_and_timm(pushed, run, tmp_path):
    folder = shutil.copytree(pushed.folder, tmp_path / "elsewhere")
    assert len((folder / "classify.py").read_text(encoding="utf-8").splitlines()) <= 28
    grid = np.random.default_rng(0).integers(0, 256, (7, 8, 3), np.uint8)
    Image.fromarray(grid).resize((320, 280)).save(tmp_path / "cell.png")
    code = (
        "import runpy, sys; sys.modules.update(dict.fromkeys(('torch', 'timm', 'hemafast')));"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folder / "classify.py", tmp_path / "cell.png", "0.1"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {name: float(share) for share, name in (line.split(" ", 1) for line in done.stdout.splitlines())}
    (ours,) = open_model(run, device="cpu").predict([tmp_path / "cell.png"], um_per_pixel=0.1).to_dict("records")
    assert next(iter(found)) == max(CARD.classes, key=ours.get)
    assert found == pytest.approx({name: ours[name] for name in CARD.classes}, abs=0.02)  # Pillow scales, not DALI


def test_hubs_can_read_the_card(pushed):
    card = HubCard.load(pushed.folder / "README.md")
    assert card.data.license == "cc-by-nc-4.0"
    assert (card.data.library_name, card.data.pipeline_tag) == ("timm", "image-classification")
    assert "## Licence" in card.text
    assert "states the licence cc-by-nc-4.0" in card.text
    assert "not a medical device" in card.text


def test_a_licence_that_nobody_gave_is_not_made_up(run, tmp_path):
    pushed = push_run(run, tmp_path)
    _, front, _ = (tmp_path / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    fields = yaml.safe_load(front)
    assert (fields["license"], fields["license_name"]) == ("other", "not-stated")
    assert "--license" in pushed.told()
    assert "states the licence" not in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_the_preprocessing_is_that_of_the_card(pushed):
    said = json.loads((pushed.folder / "preprocessing.json").read_text(encoding="utf-8"))
    assert said["classes"] == list(CARD.classes)
    assert (said["field_of_view_um"], said["square_px"], said["image_px"]) == (25.0, 64, 32)


def test_nothing_is_uploaded_unless_asked_and_offline_nothing_is_tried(run, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        huggingface_hub.HfApi, "create_repo", lambda self, to, **how: calls.append((to, how["private"]))
    )
    monkeypatch.setattr(
        huggingface_hub.HfApi, "upload_folder", lambda self, **what: calls.append(sorted(what["allow_patterns"]))
    )
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    push_run(run, tmp_path / "a")
    assert calls == []
    pushed = push_run(run, tmp_path / "b", to="lab/cells")
    assert calls == [("lab/cells", True), sorted(FILES)]
    assert pushed.address.endswith("/lab/cells")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HemafastError, match="lab/cells"):
        push_run(run, tmp_path / "c", to="lab/cells")
    assert not (tmp_path / "c").exists()


def test_what_the_hub_refuses_is_told_and_the_folder_stays(run, tmp_path, monkeypatch):
    def refused(self, to, **how):
        raise OSError("401 unauthorized")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refused)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(HemafastError, match="401 unauthorized"):
        push_run(run, tmp_path, to="lab/cells")
    assert {file.name for file in tmp_path.iterdir()} == FILES


def test_the_command_writes_where_it_says(run, tmp_path):
    done = hemafast("push", run, "--output", tmp_path / "out", "--license", "mit", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert set(said["files"]) == {file.name for file in (tmp_path / "out").iterdir()} == FILES
