"""Killed at any moment, a preparation leaves the old data set or the new one, and the next call goes on."""

import json
import os
import random
import shutil
import time
from pathlib import Path

import forked
import pytest
from recorder import Recorder
from trees import tree

from hemafast.config import PrepareConfig
from hemafast.errors import HemafastError
from hemafast.preparation.build import prepare
from hemafast.preparation.reader import read_prepared

KILLS = 20  # `make faults` kills a thousand
COUNTS = {"basophil": 90, "eosinophil": 80, "monocyte": 90}


def _config(source: Path, output: Path, seed: int = 42) -> PrepareConfig:
    # A contradiction and a damaged image are there, so that files are moved at the end.
    return PrepareConfig(source=source, output=output, pack_sizes=(96,), max_quarantined=1.0, seed=seed)


def _run(source: Path, output: Path, seed: int) -> None:
    prepare(_config(source, output, seed), workers=2)


@pytest.fixture(scope="module")
def source(tmp_path_factory, make_archive, draw, encode) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    twin = encode(draw(10_000))
    extra = {"basophil/twin.png": twin, "monocyte/twin.png": twin, "basophil/bad.png": b"bad"}
    make_archive(folder / "A.zip", COUNTS, kind="JPEG", extra=extra)
    return folder


@pytest.fixture(scope="module")
def other_source(source, tmp_path_factory, make_archive) -> Path:
    """The same archive without some of its images, and another one."""
    folder = tmp_path_factory.mktemp("killed-too")
    make_archive(folder / "A.zip", COUNTS | {"eosinophil": 8}, kind="JPEG")
    make_archive(folder / "B.zip", {"basophil": 40, "myeloblast": 30}, kind="JPEG", seed=3)
    return folder


@pytest.fixture(scope="module")
def clean(source, tmp_path_factory) -> dict[int, dict[str, str]]:
    """What undisturbed preparations with two seeds look like."""
    folder = tmp_path_factory.mktemp("clean")
    return {seed: tree(prepare(_config(source, folder / str(seed), seed)).folder) for seed in (1, 2)}


@pytest.mark.nightly
def test_after_many_kills_the_data_set_is_that_of_a_clean_run(source, other_source, clean, tmp_path):
    other = tree(prepare(_config(other_source, tmp_path / "other", 1)).folder)
    shutil.rmtree(tmp_path / "other")
    # Another split of the same images, then other images, under the same output: each replaces the one before.
    wanted = [(source, 1, clean[1]), (source, 2, clean[2]), (other_source, 1, other)]
    output, generator, kills, ends, longest = tmp_path / "prepared", random.Random(0), 0, 0, 0.5
    while kills < KILLS or ends < len(wanted):  # a busy machine seldom gets to the end in the time it is given
        archives, seed, expected = wanted[ends % len(wanted)]
        process = forked.context().Process(target=_run, args=(archives, output, seed))
        started = time.monotonic()
        process.start()
        process.join(generator.uniform(0, longest))
        if process.is_alive():
            process.kill()  # which may have ended meanwhile
            kills += 1
        process.join()
        if process.exitcode == 0:
            ends += 1
            # Later kills shall come before the end, and as often in publishing as in reading.
            longest = 0.9 * longest + 0.1 * (time.monotonic() - started)
            assert tree(output) == expected
        else:
            longest *= 1.03
            assert not output.exists() or tree(output) in [trees for _, _, trees in wanted]
            assert output.exists() or ends == 0
    for archives, seed, expected in wanted:
        prepare(_config(archives, output, seed))
        assert tree(output) == expected
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"prepared", ".prepared.lock", ".other.lock"}


def _interrupted(source: Path, output: Path, after: int) -> Path:
    """Stop a preparation as Ctrl-C does, once `after` images are done; returns the folder it worked in."""
    with pytest.raises(KeyboardInterrupt):
        prepare(_config(source, output, 1), progress=Recorder("reading images", after))
    (staging,) = (path for path in output.parent.glob(".prepared-new-*") if path.is_dir())
    return staging


@pytest.fixture
def interrupted(source, tmp_path) -> Path:
    return _interrupted(source, tmp_path / "prepared", 128)


def _finish(source: Path, output: Path, seed: int = 1) -> list[int]:
    """Prepare to the end; returns the images done at the start of reading and after each batch."""
    heard = Recorder()
    prepare(_config(source, output, seed), progress=heard)
    return heard.stage("reading images").done


def test_what_was_verified_is_not_read_again(source, clean, interrupted, tmp_path):
    told = _finish(source, tmp_path / "prepared")
    assert told[0] >= 120  # one of the first 128 may be an image that is quarantined, and looked at again
    assert tree(tmp_path / "prepared") == clean[1]


def test_another_split_goes_on_with_the_same_pixels(source, clean, interrupted, tmp_path):
    told = _finish(source, tmp_path / "prepared", 2)
    assert told[0] >= 120
    assert tree(tmp_path / "prepared") == clean[2]


STAGES = ("listing files", "hashing images read before", "reading images", "finding duplicates", "writing to disk")


@pytest.mark.parametrize("what", STAGES)
def test_a_preparation_interrupted_in_any_stage_resumes(source, clean, interrupted, tmp_path, what):
    heard = Recorder(what)
    with pytest.raises(KeyboardInterrupt):
        prepare(_config(source, tmp_path / "prepared", 1), progress=heard)
    assert heard.stages[-1].what == what
    assert _finish(source, tmp_path / "prepared")[0] >= 120
    assert tree(tmp_path / "prepared") == clean[1]


def _worklog(staging: Path) -> Path:
    return staging.with_name(f"{staging.name}.jsonl")


def _tear(staging: Path) -> None:
    _worklog(staging).write_bytes(_worklog(staging).read_bytes()[:-40])


def _change_image(staging: Path) -> None:
    path = next((staging / "images").rglob("*.jpg"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def _change_square(staging: Path) -> None:
    (path,) = (staging / "packed").iterdir()
    row = next(json.loads(line)["number"] for line in _worklog(staging).read_text().splitlines())
    with path.open("r+b") as file:
        file.seek(128 + row * 96 * 96 * 3 + 5000)
        old = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([old[0] ^ 1]))


def _garbage(staging: Path) -> None:
    _worklog(staging).write_bytes(os.urandom(5000))


def _foreign_lists(staging: Path) -> None:
    (staging / "shards").mkdir()
    (staging / "shards" / "train-00000-of-00099.txt").write_text("old")
    (staging / "dataset.json").write_text("{")
    (staging / "manifest.parquet").write_bytes(b"half")


def _moved(staging: Path) -> None:
    """As if it had been killed while contradictions were being taken out."""
    path = next(staging.glob("images/A/*/twin.png"))
    target = staging / "quarantined" / path.relative_to(staging / "images")
    target.parent.mkdir(parents=True, exist_ok=True)
    path.rename(target)


DEBRIS = {
    "a torn line": _tear,
    "a changed image": _change_image,
    "a changed square": _change_square,
    "garbage": _garbage,
    "lists of an older call": _foreign_lists,
    "a file moved already": _moved,
    "a lost image": lambda staging: next((staging / "images").rglob("*.jpg")).unlink(),
    "lost pixels": lambda staging: shutil.rmtree(staging / "packed"),
}


@pytest.mark.parametrize("leave", DEBRIS.values(), ids=DEBRIS)
def test_debris_is_not_believed(source, clean, tmp_path, leave):
    staging = _interrupted(source, tmp_path / "prepared", 263)
    leave(staging)
    _finish(source, tmp_path / "prepared")
    assert tree(tmp_path / "prepared") == clean[1]


def test_an_error_that_must_be_mended_leaves_nothing(source, tmp_path):
    config = PrepareConfig(source=source, output=tmp_path / "prepared", pack_sizes=(32,), strict=True)
    with pytest.raises(HemafastError, match="would be quarantined"):
        prepare(config)
    assert {path.name for path in tmp_path.iterdir()} == {".prepared.lock"}


def test_the_data_set_can_be_read_while_it_is_replaced(source, tmp_path):
    output = tmp_path / "prepared"
    prepare(_config(source, output, 1))
    seen = []

    class Reader(Recorder):
        def advance(self, count: int = 1, **measured: float) -> None:
            seen.append(read_prepared(output).info.settings["seed"])

    prepare(_config(source, output, 2), progress=Reader())
    assert set(seen) == {1}
    assert read_prepared(output).info.settings["seed"] == 2
