"""Compare whole folders byte for byte."""

import hashlib
from pathlib import Path


def tree(folder: Path) -> dict[str, str]:
    """sha256 of every file below `folder`, by its relative name."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
