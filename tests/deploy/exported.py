"""Runs without training: the folder that `hemafast train` would leave, with a network of random weights."""

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import torch

from hemafast.config import TrainConfig, to_json
from hemafast.engine.checkpoint import Calibration, ModelCard, View, save_best
from hemafast.engine.run import view_of
from hemafast.model import build_model

CARD = ModelCard(
    backbone="test_resnet",
    classes=("basophil", "größe", "monocyte"),
    image_size=32,
    view=View(packed_size=64, field_of_view=25.0, um_per_pixel={"Acevedo_20": 0.1, "Elsewhere": None}),
    domains=("Acevedo_20",),
    epoch=3,
    started_from="random weights, as asked for",
    data_fingerprint="ab" * 32,
    drawn_data=False,
    calibration=Calibration(temperature=1.7, threshold=0.83, target=0.95, images=40),
)


def random_model(card=CARD):
    """A network for `card`, whose answers differ from image to image."""
    torch.manual_seed(0)
    model = build_model(card.backbone, len(card.classes), card.image_size)
    model.train()
    with torch.no_grad():  # batch norms learn the statistics of noise
        for _ in range(10):
            model(torch.randint(0, 256, (16, 3, card.image_size, card.image_size), dtype=torch.uint8))
    return model.eval()


def write_run(folder, card=CARD):
    """A run folder that holds a model and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    save_best(folder / "best_model.safetensors", random_model(card), card)
    return folder


def card_on(dataset, **changes):
    """The card of a model that was trained on `dataset`."""
    info = dataset.info
    known = {
        "classes": info.classes,
        "view": view_of(info, info.pack_sizes[0]),
        "domains": tuple(info.domains),
        "data_fingerprint": info.fingerprint,
    }
    return replace(CARD, **known | changes)


def write_run_on(dataset, folder, **changes):
    """A run folder that names its data set too."""
    card = card_on(dataset, **changes)
    write_run(folder, card)
    config = TrainConfig(
        data=dataset.folder, model=card.backbone, image_size=card.image_size, pretrained="no", batch_size=8, threads=1
    )
    (folder / "config.json").write_text(to_json(config), encoding="utf-8")
    return folder


def noise(images, side=32, seed=1):
    """uint8 (images, 3, side, side)"""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (images, 3, side, side), dtype=torch.uint8, generator=draw)


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (os.mkdir, (str(self.file),))


def hostile_checkpoints(folder):
    """A path, and checkpoints that would make a folder there if anything unpickled them."""
    proof = folder / "executed"
    plain, zipped = pickle.dumps(Payload(proof)), folder / "zipped"
    torch.save({"model": Payload(proof)}, zipped)
    named = []
    for content, kind in ((plain, "plain"), (zipped.read_bytes(), "zipped")):
        run = folder / f"run-{kind}"
        run.mkdir()
        for file in (run / "best_model.safetensors", folder / f"{kind}.safetensors", folder / f"{kind}.ckpt"):
            file.write_bytes(content)
            named.append(file if file.parent == folder else run)
    return proof, named


def metadata_of(file: Path):
    """What safetensors' header says beside the tensors."""
    content = file.read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
