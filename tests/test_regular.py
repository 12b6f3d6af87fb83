"""Every reader of files of unknown origin refuses a pipe, a device and a folder, and waits for none."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hemafast.config import PrepareConfig
from hemafast.deploy.inputs import Image, read_images
from hemafast.deploy.model import open_model
from hemafast.engine.checkpoint import load_best, load_last
from hemafast.engine.journal import read_rows
from hemafast.errors import HemafastError
from hemafast.evaluate.likeness import load_likeness
from hemafast.evaluate.predictions import read_predictions
from hemafast.preparation.reader import open_squares, read_image
from hemafast.preparation.sources.containers import list_container
from hemafast.preparation.sources.gather import gather
from hemafast.preparation.tables.lists import sha256_of
from hemafast.preparation.tables.read import read_table
from hemafast.regular import open_regular, read_regular, refuse_special
from hemafast.run_folder import summarise
from hemafast.weights_file import read_weights

NO_CARD: Any = None
READERS: dict[str, Callable[[Path], Any]] = {
    "best_model.safetensors": load_best,
    "last_model.ckpt": load_last,
    "likeness.safetensors": lambda file: load_likeness(file.with_name("best_model.safetensors"), NO_CARD),
    "predictions.csv": read_predictions,
    "training_log.csv": lambda file: read_rows(file.parent),
    "config.json": lambda file: summarise(file.parent),
    "model.onnx": open_model,
    "model.pt2": open_model,
    "model.safetensors": open_model,
    "weights.pth": read_weights,
    "table.csv": read_table,
    "table.xlsx": read_table,
    "table.parquet": read_table,
    "64-00000.npy": lambda file: open_squares(file, 1, 64),
    "image.tiff": lambda file: read_image(file, "ab" * 32),
    "sums.txt": sha256_of,
    **{f"archive{suffix}": list_container for suffix in (".zip", ".tar", ".tar.gz", ".tar.xz", ".tar.bz2", ".tar.zst")},
    "source.zip": lambda file: gather(PrepareConfig(source=file, output=file.parent / "prepared")),
}


@pytest.fixture(params=["pipe", "device", "folder"])
def special(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    """`special(path)`: puts something at the name that is no regular file."""
    makers: dict[str, Callable[[Path], Any]] = {
        "pipe": os.mkfifo,
        "device": lambda path: path.symlink_to("/dev/zero"),
        "folder": Path.mkdir,
    }
    return makers[request.param]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", [name for name in READERS if not name.startswith(("archive", "source"))])
def test_it_is_an_error_at_once(tmp_path: Path, special: Callable[[Path], None], name: str) -> None:
    special(tmp_path / name)
    with pytest.raises((HemafastError, OSError)):
        READERS[name](tmp_path / name)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", [name for name in READERS if name.startswith(("archive", "source"))])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_an_archive_is_no_pipe_and_no_device(tmp_path: Path, name: str, make: Callable[[Path], Any]) -> None:
    make(tmp_path / name)
    with pytest.raises(HemafastError):
        READERS[name](tmp_path / name)


@pytest.mark.timeout(60)
def test_an_image_that_is_special_is_an_error_of_its_own(tmp_path: Path, special: Callable[[Path], None]) -> None:
    special(tmp_path / "x.png")
    (found,) = read_images([Image(str(tmp_path / "x.png"))])
    assert isinstance(found, OSError)


def test_a_regular_file_is_read_whole_or_in_part(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"hello")
    assert (read_regular(tmp_path / "a"), read_regular(tmp_path / "a", 2)) == (b"hello", b"he")
    with open_regular(tmp_path / "a") as stream:
        assert stream.read() == b"hello"
    refuse_special(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        refuse_special(tmp_path / "b")
