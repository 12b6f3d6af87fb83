"""How many cores this process may use."""

from __future__ import annotations


def cores() -> int:
    """The cores that the affinity allows and that a quota of the container grants, rounded up: 2 for a quota of 1.5."""
    import joblib  # type: ignore[import-untyped] # it reads the quotas of control groups, and the affinity

    return int(joblib.cpu_count())
