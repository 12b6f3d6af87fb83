"""The files of docs/clusters as blocks for the page about several processes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "clusters"


def tables(_: Mapping[str, Any]) -> dict[str, str]:
    """Each file by the name `cluster_STEM`, as a block of Markdown."""
    return {f"cluster_{file.stem}": f"```bash\n{file.read_text(encoding='utf-8')}```" for file in FOLDER.iterdir()}
