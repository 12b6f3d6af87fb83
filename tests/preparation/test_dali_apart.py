"""DALI in a process of its own: it names the image that it cannot read, and survives those that crash it."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from jpegs import without_first_segment

from hemafast.config import PrepareConfig
from hemafast.preparation.build import prepare
from hemafast.preparation.dali_apart import DaliApart, dali_apart
from hemafast.preparation.dali_reader import Reading
from hemafast.preparation.pixels import hash_squares


@pytest.fixture
def apart():
    one = DaliApart(1)
    yield one
    one.close()


def test_jpegs_have_a_shape_and_other_images_pixels_too(draw, encode):
    pixels = draw(0)
    jpeg, png, tiff = (encode(pixels, kind) for kind in ("JPEG", "PNG", "TIFF"))
    whole = Reading(pixels.shape, hash_squares([pixels]))
    assert dali_apart(1).read([jpeg, png, jpeg, tiff]) == [Reading(pixels.shape, ""), whole] * 2
    assert dali_apart(1).read([]) == []


@pytest.mark.parametrize("bad", [0, 2])
def test_a_refused_image_is_named_and_disturbs_no_other(draw, encode, bad):
    images = [encode(draw(seed), "JPEG") for seed in range(3)] + [encode(draw(3))]
    images[bad] = without_first_segment(images[bad])
    images += [b"\x89PNG no image", b"x"]
    found = dali_apart(1).read(images)
    assert [place for place, reading in enumerate(found) if reading is None] == [bad, 4, 5]
    assert dali_apart(1).read([images[3]]) == [found[3]]


CRASHING = """
    import os, sys
    from hemafast.preparation import dali_reader

    class Crashes(dali_reader.DaliReader):
        def read(self, encoded):
            if any(bytes(data) == b"crash" for data in encoded):
                os.kill(os.getpid(), 11)
            if any(bytes(data) == b"hang" for data in encoded):
                import time
                time.sleep(100)
            return super().read(encoded)

    dali_reader.DaliReader = Crashes
"""


@pytest.fixture
def crashing(apart, tmp_path, monkeypatch):
    """As if one image crashed it, and another made it hang."""
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(CRASHING))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    return apart


def test_an_image_that_crashes_it_is_named_and_the_others_are_read(crashing, draw, encode):
    good = encode(draw(0), "JPEG")
    assert crashing.read([good])
    before, _ = crashing._child
    found = crashing.read([good, b"crash", good])
    assert before.returncode == -signal.SIGSEGV or before.returncode == -signal.SIGKILL  # whichever came first
    assert crashing._child[0].pid != before.pid
    assert found == [Reading(draw(0).shape, ""), None, Reading(draw(0).shape, "")]


def test_an_image_that_makes_it_hang_is_named(crashing, monkeypatch):
    assert crashing.read([b"no image"]) == [None]
    before, _ = crashing._child
    monkeypatch.setattr("hemafast.preparation.dali_apart._PATIENCE", 0.1)
    assert crashing.read([b"hang"]) == [None]
    assert before.returncode == -signal.SIGKILL


def test_a_killed_process_is_started_again(apart, draw, encode):
    png = encode(draw(0))
    before = apart.read([png])
    process, _ = apart._child
    process.kill()
    process.wait()
    assert apart.read([png]) == before == [Reading(draw(0).shape, hash_squares([draw(0)]))]
    assert apart._child[0].pid != process.pid


def test_it_ends_with_its_parent():
    code = """
        from hemafast.preparation.dali_apart import DaliApart
        import os, signal
        apart = DaliApart(1)
        apart.read([b"x"])
        print(apart._child[0].pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    wait_for(lambda: ended(int(done.stdout)))


def ended(pid: int) -> bool:
    """Whether a process is gone, or only waits to be asked for its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_what_dali_cannot_read_is_quarantined(tmp_path, draw, encode, make_archive):
    """It crashes on it now and then, and libjpeg reads it without a warning."""
    extra = {"basophil/bad.jpg": without_first_segment(encode(draw(7), "JPEG"))}
    make_archive(tmp_path / "source" / "D", {"monocyte": 9, "basophil": 3}, extra=extra)
    config = PrepareConfig(source=tmp_path / "source", output=tmp_path / "p", pack_sizes=(32,), max_quarantined=1)
    (left,) = prepare(config).quarantine
    assert (left.file, left.kind) == ("quarantined/D/basophil/bad.jpg", "decoders disagree")
    assert left.reason == "DALI cannot decode it"
