"""The files for clusters run: with stand-ins for the programs of a scheduler, which write down what they are given."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import typer
from torch.distributed.run import get_args_parser

from hemafast.cli import app

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "clusters"
STAND_IN = """#!/bin/bash
printf '%q ' "$(basename "$0")" "$@" >> "$CALLS"
echo >> "$CALLS"
case "$(basename "$0")" in
    sbatch) [ "$1" != --parsable ] || echo 4711 ;;
    scontrol) [ "$1" != show ] || printf 'first\\nsecond\\n' ;;
    srun) exit "${SRUN_EXIT:-0}" ;;
esac
"""
JOB = {"SLURM_JOB_NODELIST": "first,second", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "7"}


@pytest.fixture
def run(tmp_path):
    """Run a file; its exit code, and the words of each call of a program of the scheduler."""
    calls, programs = tmp_path / "calls", tmp_path / "bin"
    programs.mkdir()
    for name in ("sbatch", "scontrol", "srun", "torchrun"):
        (programs / name).write_text(STAND_IN)
        (programs / name).chmod(0o755)

    def started(file: str, *arguments: str, **variables: str) -> tuple[int, list[list[str]]]:
        environment = {"PATH": f"{programs}:{os.environ['PATH']}", "CALLS": str(calls), **variables}
        done = subprocess.run(["bash", FOLDER / file, *arguments], env=environment, timeout=60, check=False)
        return done.returncode, [shlex.split(line) for line in calls.read_text().splitlines()]

    return started


def refused(command: str, words: list[str]) -> set[str]:
    """Options among the words that the command does not know."""
    known = {option for one in typer.main.get_command(app).commands[command].params for option in one.opts}
    return {word for word in words if word.startswith("--")} - known


def launched(words: list[str]) -> tuple[object, list[str]]:
    """What torchrun makes of its options, and the words after `hemafast train`."""
    given = get_args_parser().parse_args(words)
    assert given.module
    command, *rest = given.training_script_args
    assert (given.training_script, command) == ("hemafast", "train")
    return given, rest


def test_a_training_job_starts_one_torchrun_per_node_and_hands_its_options_on(run):
    code, (_, (program, *words)) = run("train.sbatch", "--preset", "onecycle", **JOB)
    assert (code, program, words.pop(0)) == (0, "srun", "torchrun")
    given, rest = launched(words)
    assert (given.nnodes, given.nproc_per_node, given.rdzv_endpoint, given.rdzv_id) == ("2", "8", "first:29500", "7")
    assert rest == ["--resume", "auto", "--preset", "onecycle"]
    assert not refused("train", rest)


@pytest.mark.parametrize(("restarts", "again"), [("0", True), ("19", True), ("20", False)])
def test_a_stopped_job_requeues_itself_a_limited_number_of_times(run, restarts, again):
    code, calls = run("train.sbatch", SRUN_EXIT="138", SLURM_RESTART_COUNT=restarts, **JOB)
    assert (["scontrol", "requeue", "7"] in calls) == again == (code == 0)


def test_the_join_waits_for_all_parts(run):
    code, ((_, *parts), (_, *join)) = run("prepare.sh", "/shared/a source")
    assert code == 0
    assert "--array=1-8" in parts
    assert "--dependency=afterok:4711" in join
    assert shlex.split(join[-1]) == ["hemafast", "prepare", "--source", "/shared/a source", "--join"]
    assert not refused("prepare", shlex.split(join[-1]))


@pytest.mark.parametrize(
    ("ends", "calls", "code"),
    [
        ("true", 1, 0),
        ('[ $(wc -l < "$CALLS") -gt 2 ] || kill -KILL $$', 3, 0),
        ("kill -KILL $$", 3, 1),
        ("exit 2", 1, 1),
    ],
    ids=["well", "killed twice", "killed always", "refuses"],
)
def test_a_part_that_is_killed_is_started_again_and_one_that_refuses_is_not(run, tmp_path, ends, calls, code):
    _, ((_, *parts), _) = run("prepare.sh", "/shared/a source")
    (tmp_path / "calls").write_text("")
    program = tmp_path / "bin" / "hemafast"
    program.write_text(f'#!/bin/bash\nprintf "%q " "$@" >> "$CALLS"; echo >> "$CALLS"\n{ends}\n')
    program.chmod(0o755)
    environment = {"PATH": f"{program.parent}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls")}
    command = ["bash", "-c", parts[parts.index("--wrap") + 1]]
    done = subprocess.run(command, env=environment | {"SLURM_ARRAY_TASK_ID": "3"}, timeout=60, check=False)
    assert done.returncode == code
    asked = [shlex.split(line) for line in (tmp_path / "calls").read_text().splitlines()]
    assert asked == [["prepare", "--source", "/shared/a source", "--part", "3/8"]] * calls
    assert not refused("prepare", asked[0])


@pytest.mark.parametrize(("variables", "processes"), [({}, "gpu"), ({"PROCESSES": "2"}, "2")])
def test_machines_without_a_scheduler_meet_at_the_first_one(run, variables, processes):
    code, ((_, *words),) = run("torchrun.sh", "node1", "2", "--preset", "onecycle", **variables)
    assert code == 0
    given, rest = launched(words)
    assert (given.nnodes, given.nproc_per_node, given.rdzv_endpoint) == ("2", processes, "node1:29500")
    assert not refused("train", rest)


def test_every_file_for_clusters_is_run_here():
    tested = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{file.name}"' in tested for file in FOLDER.iterdir())
