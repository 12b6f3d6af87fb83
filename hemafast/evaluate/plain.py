"""Numbers as people and JSON take them."""

from __future__ import annotations

from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """Numbers of numpy as JSON takes them; what is not finite becomes None."""
    if np.ndim(value):
        return [plain(part) for part in value]
    return float(value) if np.isfinite(value) else None


def wilson(hits: int, images: int) -> list[float] | None:
    """Wilson's 95 % interval of a share; None without images."""
    from scipy.stats import binomtest

    if not images:
        return None
    ends = binomtest(hits, images).proportion_ci(method="wilson")
    return [float(ends.low), float(ends.high)]
