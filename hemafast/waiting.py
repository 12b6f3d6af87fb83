"""How long a thread of torch that waits for others on a CPU keeps its core before it sleeps.

By default, it counts to 300,000 first, some milliseconds. Beside other programs, that is time that the thread it waits
for could have used. `GOMP_SPINCOUNT` sets it for GNU OpenMP, which torch's packages bring, when torch is loaded; it
cannot be changed later.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path

SPINS, SPINS_BESIDE_OTHERS = 10_000, 1_000
"""What the command sets where the user has set nothing: on a quiet machine, and beside busy programs.

The fewer, the slower alone, and the faster beside others: benchmarks/busy.py.
"""

SPIN_COUNT, WAIT_POLICY = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"
_LOAD = Path("/proc/loadavg")
_LOOKS = 5


def spin_briefly(environment: MutableMapping[str, str]) -> None:
    """Set a number of spins for libraries that are loaded from now on, unless the user has set how threads wait."""
    if not environment.keys() & {SPIN_COUNT, WAIT_POLICY}:
        environment[SPIN_COUNT] = str(SPINS_BESIDE_OTHERS if cores_are_short() else SPINS)


def cores_are_short(load: Path = _LOAD) -> bool:
    """Whether other programs compute now that this one, with a thread on each core it may use, has to share cores with.

    False where the system does not tell, as outside Linux.
    """
    try:  # of several looks, the least: what runs for a moment only is no neighbour
        running = min(int(load.read_text(encoding="ascii").split()[3].split("/")[0]) for _ in range(_LOOKS))
    except (OSError, ValueError, IndexError):
        return False
    others = running - 1
    return others > 0 and others + len(os.sched_getaffinity(0)) > (os.cpu_count() or 1)


def spin_as_usual(environment: MutableMapping[str, str]) -> None:
    """Undo `spin_briefly`, for a program that is measured as others run it."""
    if environment.get(SPIN_COUNT) in (str(SPINS), str(SPINS_BESIDE_OTHERS)):
        del environment[SPIN_COUNT]


def waiting_told(environment: Mapping[str, str]) -> tuple[str, str]:
    """How threads wait, in words, and where that is set."""
    if SPIN_COUNT in environment:
        return f"sleep after {environment[SPIN_COUNT]} spins", SPIN_COUNT
    if WAIT_POLICY in environment:
        return environment[WAIT_POLICY].lower(), WAIT_POLICY
    return "as OpenMP has it", f"neither {SPIN_COUNT} nor {WAIT_POLICY} is set"
