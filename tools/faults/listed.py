"""What can go wrong: the faults that the battery injects, what hemafast does about each, and what its user does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One kind of fault."""

    name: str
    """As `--only` takes it."""
    title: str
    """What happens."""
    does: str
    """What hemafast does."""
    remedy: str
    """What its user does."""
    injected: str
    """How the battery injects it."""


_AGAIN = "Give the same command again; `hemafast train --resume RUN` for a training."

FAULTS = (
    Fault(
        "kill",
        "The process is killed (SIGKILL, out of memory)",
        "Files are replaced whole or not at all, so that all that can be read is complete. The next call continues.",
        _AGAIN,
        "SIGKILL at a random moment of prepare, train, save, evaluate, export, adapt and sweep, up to eight times "
        "before the command may end",
    ),
    Fault(
        "signals",
        "Signals, one soon after another (Ctrl-C, a lost terminal, a scheduler's time limit)",
        "The first one saves the run after the present update and stops it with exit code 128 and its number. Another "
        "one more than a second later stops it at once.",
        "Continue with `hemafast train --resume RUN`.",
        "two of SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 and SIGXCPU within a second, or more than one apart, at a "
        "random moment of train",
    ),
    Fault(
        "disk",
        "The disk is full, a quota is used up, or the disk fails (ENOSPC, EDQUOT, EIO)",
        "One line names the file. What was written before stays whole, and half a file is removed. A training goes on: "
        "its checkpoint is written only after the best model and the rows of the log, and all are tried again at the "
        "next save. What is not written at the end is an error.",
        "Make room, or name another `--output`. Then give the same command again.",
        "a write, fsync, rename or opening of a file that fails, once or from then on, in any of these commands",
    ),
    Fault(
        "short-write",
        "The disk takes a part of the data at a time (pipes, network disks, quotas)",
        "The rest is written after it.",
        "Nothing.",
        "writes of half of the bytes, in any of these commands",
    ),
    Fault(
        "clock",
        "The clock of the machine is set while a command runs",
        "Durations and time budgets follow a clock that nobody can set.",
        "Nothing.",
        "a jump by minutes to years, forwards or backwards, in a training of some epochs and in one with a time budget",
    ),
    Fault(
        "files",
        "Files are cut, deleted or replaced while a command reads them",
        "One line names the file, and the last checkpoint is kept.",
        "Put the file back, or run `hemafast prepare` again. Then give the same command again.",
        "packed squares, images and dataset.json under a training, and an archive under prepare",
    ),
    Fault(
        "resume-twice",
        "A run is resumed two or three times at once",
        "One process trains. The others are refused with the number of its process and the name of its host.",
        "Wait for that process, or stop it.",
        "two or three `--resume` of a stopped run at the same moment",
    ),
    Fault(
        "restarts",
        "A command is started and killed many times in a row (a crash loop of a scheduler)",
        "No half file, temporary file or process stays. A start that had saved nothing yet may leave a run folder "
        "without a checkpoint.",
        "Give the same command again.",
        "30 starts of train, each killed within a second",
    ),
    Fault(
        "rank",
        "A process of several that train together is killed",
        "torchrun starts all again, and they continue from the last checkpoint.",
        "Start torchrun with `--max-restarts`.",
        "SIGKILL of the second of two processes at a random moment after the first checkpoint",
    ),
    Fault(
        "surroundings",
        "TMPDIR names a folder that is gone, or LC_ALL a locale that is not installed",
        "It works all the same, or one line says what to set.",
        "Set the variable to a folder that you may write to, or to a locale that exists.",
        "evaluate in a new process with such variables",
    ),
)
"""In the order of the table."""
