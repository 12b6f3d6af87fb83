"""How long a thread of torch that waits for others on a CPU keeps its core before it sleeps.

By default, it counts to 300,000 first, some milliseconds. Beside other programs, that is time that the thread it waits
for could have used. `GOMP_SPINCOUNT` sets it for GNU OpenMP, which torch's packages bring, when torch is loaded. Later,
`hemafast.engine.yielding` can make it shorter.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

SPINS = 10_000
"""What the command sets where the user has set nothing: fewer are slower alone, benchmarks/busy.py."""

SPIN_COUNT, WAIT_POLICY = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"


def set_by_user(environment: Mapping[str, str]) -> bool:
    """Whether variables say how threads wait, other than those that `spin_briefly` sets."""
    return WAIT_POLICY in environment or environment.get(SPIN_COUNT, str(SPINS)) != str(SPINS)


def spin_briefly(environment: MutableMapping[str, str]) -> None:
    """Set a number of spins for libraries that are loaded from now on, unless the user has set how threads wait."""
    if not set_by_user(environment):
        environment[SPIN_COUNT] = str(SPINS)


def spin_as_usual(environment: MutableMapping[str, str]) -> None:
    """Undo `spin_briefly`, for a program that is measured as others run it."""
    if environment.get(SPIN_COUNT) == str(SPINS):
        del environment[SPIN_COUNT]


def waiting_told(environment: Mapping[str, str]) -> tuple[str, str]:
    """How threads wait, in words, and where that is set."""
    if SPIN_COUNT in environment:
        return f"sleep after {environment[SPIN_COUNT]} spins", SPIN_COUNT
    if WAIT_POLICY in environment:
        return environment[WAIT_POLICY].lower(), WAIT_POLICY
    return "as OpenMP has it", f"neither {SPIN_COUNT} nor {WAIT_POLICY} is set"
