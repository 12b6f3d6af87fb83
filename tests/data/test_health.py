"""Long runs: memory stays flat, nothing is left behind by epochs that are broken off, Ctrl-C ends at once."""

import json
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

RUN = """
import gc, json, os, sys
from pathlib import Path
import psutil
from hemafast.data.augment import POLICIES
from hemafast.data.dataset import open_dataset
from hemafast.data.graph import GraphShape
from hemafast.data.loader import eval_loader, train_loader

samples = open_dataset(Path(sys.argv[1])).samples("train")
shape = GraphShape("cpu", sys.argv[2], 64, 56, 8, 2)
loader = train_loader(samples, policy=POLICIES[sys.argv[3]], seed=0, shape=shape)
validation = eval_loader(samples, shape=shape)
me, seen = psutil.Process(), []
for epoch in range(int(sys.argv[4])):
    for number, batch in enumerate(loader.epoch()):
        if epoch % 4 == 3 and number == 2:
            break  # an epoch that is broken off, and a new pipeline after it
    if epoch % 10 == 0:
        list(validation.epoch())
    print("epoch", epoch, flush=True)
    if epoch % 10 == 9:
        gc.collect()
        seen.append([me.memory_info().rss, me.num_threads(), me.num_fds()])
print(json.dumps(seen))
"""


def _command(folder, source, policy, epochs):
    return [sys.executable, "-c", RUN, str(folder), source, policy, str(epochs)]


@pytest.mark.nightly
@pytest.mark.parametrize(("source", "policy"), [("packed", "basic"), ("files", "seed")])
def test_200_epochs_leave_memory_threads_and_files_as_they_are(prepared, source, policy):
    done = subprocess.run(_command(prepared.folder, source, policy, 200), capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout.splitlines()[-1])
    memory, threads, files = zip(*seen, strict=True)
    assert len(memory) == 20
    assert max(memory[10:]) < 1.03 * max(memory[2:10])
    assert max(threads[1:]) <= max(threads[:3])
    assert max(files[1:]) <= max(files[:3])


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_running_loader_at_once(prepared, signum):
    command = _command(prepared.folder, "packed", "basic", 10**6)
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heed_interrupts,  # noqa: PLW1509 - one system call
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch 20"):
                break
        started = time.monotonic()
        for _ in range(3):  # Python drops an interrupt that arrives within a destructor, as DALI's pipelines have one
            process.send_signal(signum)
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=3)
                break
        assert time.monotonic() - started < 10
        assert process.returncode in (-signum, 128 + signum)


def _heed_interrupts():
    """A shell has its background jobs, such as these tests may be, ignore SIGINT, and they hand that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
