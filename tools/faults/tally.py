"""Count what was injected, survived and lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Tally:
    """The count of one kind of fault."""

    injected: int = 0
    lost: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Of what was lost: command and reason, and how often."""
    details: Counter[str] = field(default_factory=Counter)
    """Faults injected by command and form."""
    skipped: str = ""
    """Why none was injected, where it could not be."""

    @property
    def survived(self) -> int:
        """Faults after which everything was as without them."""
        return self.injected - self.lost

    def add(self, what: str, problems: Sequence[str], count: int = 1) -> None:
        """Count faults of the form `what`; all of them are lost if there is a problem."""
        self.injected += count
        self.details[what] += count
        if problems and count:
            self.lost += count
            self.reasons.update(f"{what}: {problem}" for problem in problems)

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Tally:
        """The counts that `to_json` wrote."""
        reasons, details = Counter(kept["reasons"]), Counter(kept["details"])
        return cls(kept["injected"], kept["lost"], reasons, details, kept.get("skipped", ""))

    def __add__(self, later: Tally) -> Tally:
        """Both counts together."""
        sums = self.injected + later.injected, self.lost + later.lost
        return Tally(*sums, self.reasons + later.reasons, self.details + later.details, later.skipped)

    def to_json(self) -> dict[str, Any]:
        """As it is written down."""
        counts = {"injected": self.injected, "survived": self.survived, "lost": self.lost}
        more = {"details": dict(sorted(self.details.items())), "reasons": dict(self.reasons.most_common())}
        return counts | more | ({"skipped": self.skipped} if self.skipped else {})
