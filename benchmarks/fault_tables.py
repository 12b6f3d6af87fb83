"""Tables of faults.json: what was injected, survived and lost, and what can go wrong. They need no torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))

from faults.listed import FAULTS  # beside the package, not a part of it
from output import machine_line, table


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """What can go wrong, the counts of the last battery, and what it lost."""
    result = results["faults"]
    counted: Mapping[str, Any] = result["faults"]
    return {
        "faults": table(
            "fault | what hemafast does | what you do", [[one.title, one.does, one.remedy] for one in FAULTS]
        ),
        "faults_injected": table(
            "`--only` | injected how | injected | survived | lost",
            [[f"`{one.name}`", one.injected, *_counts(counted.get(one.name))] for one in FAULTS],
            f"`{result['command']}`, {result['minutes']:.1f} minutes of faults. {machine_line(result['machine'])}",
        ),
        "faults_lost": _lost(counted),
    }


def _counts(found: Mapping[str, Any] | None) -> list[str]:
    """Injected, survived and lost; why not, if none was injected."""
    if not found or not found["injected"]:
        return [(found or {}).get("skipped") or "0: no time was left", "", ""]
    return [f"{found[name]:,}" for name in ("injected", "survived", "lost")]


def _lost(counted: Mapping[str, Any]) -> str:
    rows = [row for name, found in counted.items() for row in _reasons(name, found)]
    return table("`--only` | command and what was wrong | times", rows) if rows else "Nothing was lost."


def _reasons(name: str, found: Mapping[str, Any]) -> Iterator[list[str]]:
    for reason, times in found["reasons"].items():
        yield [f"`{name}`", reason, f"{times:,}"]
