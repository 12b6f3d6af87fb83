"""Small archives and prepared data sets of seeded noise and blobs, and short runs on them."""

import contextlib
import gc
import io
import logging
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from nvidia.dali._utils import dali_trace
from page import BROWSER
from PIL import Image

from hemafast.config import PrepareConfig, TrainConfig, checked
from hemafast.data.dataset import Dataset, open_dataset
from hemafast.data.samples import Samples
from hemafast.engine import layout
from hemafast.engine.trainer import train
from hemafast.evaluate.evaluate import evaluate_run
from hemafast.preparation import parts, publish
from hemafast.preparation.build import Prepared, prepare

TrainOn = Callable[..., Path]

SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "TIFF": ".tiff", "BMP": ".bmp"}


def _draw(seed: int, width: int = 64, height: int = 60) -> np.ndarray:
    """A dark blob on a bright ground, with noise: uint8 (height, width, 3)."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    centre_y, centre_x = generator.uniform(0.3, 0.7, 2) * (height, width)
    blob = np.hypot(y - centre_y, x - centre_x) < generator.uniform(0.15, 0.35) * min(width, height)
    ground, cell = generator.integers(150, 230, 3), generator.integers(40, 140, 3)
    pixels = np.where(blob[..., None], cell, ground) + generator.normal(0, 12, (height, width, 3))
    return pixels.clip(0, 255).astype(np.uint8)


def _encode(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _write_archive(
    path: Path,
    counts: Mapping[str, int],
    *,
    kind: str = "PNG",
    size: tuple[int, int] = (64, 60),
    seed: int = 0,
    top: str = "",
    extra: Mapping[str, bytes] | None = None,
) -> Path:
    files = {}
    for rank, (label, count) in enumerate(counts.items()):
        for number in range(count):
            data = _encode(_draw(10_000 * seed + 1_000 * rank + number, *size), kind)
            files[f"{top}{label}/{label[:3].upper()}_{number:03d}{SUFFIXES[kind]}"] = data
    files |= extra or {}
    if path.suffix == ".zip":
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return path


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Networks this small are slower on several threads, and far slower where others compute beside them."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _still_one_thread() -> Iterator[None]:
    """What a test leaves changes the last bits of what the next ones train."""
    yield
    left = torch.get_num_threads()
    torch.set_num_threads(1)  # so that no other test fails by it
    assert left == 1


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What trials of speed find in tests is not kept for the user of this machine."""
    with pytest.MonkeyPatch.context() as change:
        change.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="module")
def _imports_are_kept() -> None:
    """A collection of garbage looks through half a million objects of modules otherwise, for 0.3 s.

    Once a module, because tests import more: in the room of experiments, collections took a seventh of the time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _operators_keep_no_traceback() -> None:
    """DALI notes the traceback of each operator that is made, for its errors; within pytest it has a hundred frames."""
    dali_trace.set_tracing(enabled=False)


@pytest.fixture(autouse=True, scope="session")
def _no_wait_for_the_disk() -> Iterator[None]:
    """No test needs its files on the disk: power cuts are played. Other processes flush as ever."""
    with pytest.MonkeyPatch.context() as change:
        for owner, name in ((os, "fsync"), (os, "fdatasync"), (publish, "sync"), (parts, "sync")):
            change.setattr(owner, name, lambda _: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _compared() -> Iterator[None]:
    """No network is compared in two layouts, which takes a process each: test_layout_trial.py does that."""
    with pytest.MonkeyPatch.context() as change:
        change.setattr(layout, "compare", lambda *_: layout.Comparison(frozenset()))
        yield


@pytest.fixture(scope="session")
def draw() -> Callable[..., np.ndarray]:
    """`draw(seed, width=64, height=60)`: RGB pixels."""
    return _draw


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """`encode(pixels, kind="PNG", **options)`: the bytes of a file, as Pillow writes it."""
    return _encode


@pytest.fixture(scope="session")
def make_archive() -> Callable[..., Path]:
    """`make_archive(path, counts, kind="PNG", size=(64, 60), seed=0, top="", extra=None)`: a zip or folder."""
    return _write_archive


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """58 images of two domains and five classes at a packed size of 64; read it, never change it."""
    source = tmp_path_factory.mktemp("prepared-source")
    first = {"basophil": 12, "eosinophil": 9, "monocyte": 7}
    second = {"basophil": 5, "monocyte": 11, "myeloblast": 8, "promyelocyte": 6}
    _write_archive(source / "Acevedo_20.zip", first, kind="JPEG", size=(76, 72), seed=1)
    _write_archive(source / "Matek_19.zip", second, kind="TIFF", size=(64, 80), seed=2)
    return prepare(PrepareConfig(source=source, output=source / "prepared", pack_sizes=(64,), shards=3))


@pytest.fixture(scope="session")
def dataset(prepared: Prepared) -> Dataset:
    return open_dataset(prepared.folder)


@pytest.fixture(scope="session")
def train_samples(dataset: Dataset) -> Samples:
    return dataset.samples("train")


@pytest.fixture(scope="session")
def val_samples(dataset: Dataset) -> Samples:
    return dataset.samples("val")


@pytest.fixture(scope="session")
def tarred_samples(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """The training images of `prepared`, which lie in WebDataset tars too."""
    folder = tmp_path_factory.mktemp("tarred") / "prepared"
    source = prepared.folder.parent
    settings = PrepareConfig(source=source, output=folder, pack_sizes=(64,), shards=3, format="webdataset")
    return open_dataset(prepare(settings).folder).samples("train")


@pytest.fixture(scope="session")
def train_on(tmp_path_factory: pytest.TempPathFactory) -> TrainOn:
    """`train_on(data, **changes)`: the folder of a short run."""

    def make(data: Path, **changes) -> Path:
        small = {
            "data": data,
            "output": tmp_path_factory.mktemp("runs"),
            "model": "test_resnet",
            "pretrained": "no",
            "epochs": 3,
            "batch_size": 8,
            "image_size": 56,
            "lr": 3e-3,
            "amp": "off",
            "device": "cpu",
            "threads": 1,
            "track": (),  # the picture of each epoch takes longer than the epoch
        }
        logger = logging.getLogger("hemafast")
        before = logger.level
        logger.setLevel(logging.DEBUG)
        try:
            return train(checked(TrainConfig, small | changes))
        finally:
            logger.setLevel(before)

    return make


@pytest.fixture(scope="session")
def trained(prepared: Prepared, train_on: TrainOn) -> Path:
    """A run that was not evaluated; read it, never change it."""
    return train_on(prepared.folder)


@pytest.fixture(scope="session")
def scored(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, evaluated; read it, never change it."""
    folder = Path(shutil.copytree(trained, tmp_path_factory.mktemp("scored") / "run"))
    evaluate_run(folder)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run to change at will."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(scope="module")
def browser():
    """A browser without a window; not for the session, since a test that runs an event loop cannot run beside it."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def open_page(browser):
    """`open_page(file, width=1200)`: the page, without a network, and the list of what it complains of from then on."""
    with contextlib.ExitStack() as stack:

        def load(file, width=1200):
            page = browser.new_page(viewport={"width": width, "height": 900}, offline=True)
            stack.callback(page.close)
            complaints, own = [], (file.as_uri(), "data:", "blob:")
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("request", lambda one: None if one.url.startswith(own) else complaints.append(one.url))
            page.goto(file.as_uri())
            return page, complaints

        yield load
