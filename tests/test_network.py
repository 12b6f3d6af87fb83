"""The network is used for pretrained weights and for nothing else, and with --offline for nothing at all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hemafast as hf
from hemafast import weights

WATCH = """
import os, sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        if event in ("socket.connect", "socket.sendto") and arguments[0].family == 1:
            return  # a Unix socket between processes of this machine
        with open(os.environ["TRIED"], "a", encoding="utf-8") as file:
            print(event, *map(repr, arguments), file=file)
        raise OSError("no network here")
sys.addaudithook(watch)
"""
"""Loaded by every Python process, children too: it writes down each attempt to use a network, and refuses it."""

RUN = """
import json, os, sys
from hemafast.cli import main
for command in json.loads(sys.argv.pop()):
    with open(os.environ["TRIED"], "a", encoding="utf-8") as file:
        print("hemafast", *command, file=file)
    sys.argv[1:] = command
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
"""
"""Runs commands, given as JSON, in one process."""

DEPRECATED = "error::DeprecationWarning,error::PendingDeprecationWarning,error::FutureWarning"
"""As in pytest itself, what libraries are about to drop is an error, in child processes too."""

TRAIN = ("train", "--model", "test_resnet", "--image-size", "32", "--epochs", "1", "--device", "cpu", "--quiet")
ONLINE = [
    ("demo", "--images", "120"),
    ("prepare", "--pack-size", "64"),
    TRAIN,  # which evaluates and writes the report
    ("predict", "latest", "Source/Acevedo_20.zip", "--output", "predicted.csv"),
    ("export", "latest"),
]
OFFLINE = [("--offline", *TRAIN), ("--offline", "doctor", "--model", "test_resnet", "--image-size", "32")]


@pytest.mark.slow
def test_only_pretrained_weights_use_the_network_and_with_offline_nothing_does(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    room, tried = tmp_path / "room", tmp_path / "tried"
    room.mkdir()
    away = {name: text for name, text in os.environ.items() if name != "HF_HUB_OFFLINE"}
    away |= {"PYTHONPATH": f"{tmp_path}:{Path(hf.__file__).parent.parent}", "TRIED": str(tried)}
    away |= {"OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "hub"), "PYTHONWARNINGS": DEPRECATED}
    command = [sys.executable, "-c", RUN, json.dumps([*ONLINE, *OFFLINE])]
    done = subprocess.run(command, capture_output=True, text=True, env=away, cwd=room, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    per_command = [lines.splitlines() for lines in tried.read_text().split("hemafast ")[1:]]
    attempts = {given: lines for given, *lines in per_command if lines}
    assert list(attempts) == [" ".join(TRAIN)]
    assert all("huggingface.co" in line for line in attempts[" ".join(TRAIN)])


@pytest.mark.parametrize(("given", "offline"), [("1", True), ("yes", True), ("0", False), ("", False), ("no", False)])
def test_the_variable_is_read_as_the_library_of_the_hub_reads_it(monkeypatch, given, offline):
    monkeypatch.setenv("HF_HUB_OFFLINE", given)
    assert weights.is_offline() is offline
