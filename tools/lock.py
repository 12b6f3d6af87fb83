"""Write requirements.lock for `pip install --require-hashes`: versions, and the sha256 of each archive.

`make lock` asks pip for the report, from whichever index pip is set up with.

python tools/lock.py REPORT > requirements.lock
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

HEAD = "# Written by `make lock` for Python {python_version} on {sys_platform} {platform_machine}. See SECURITY.md."


def locked(report: Mapping[str, Any]) -> Iterator[str]:
    """Lines of the lock file. Raises KeyError for an archive whose sha256 pip does not know."""
    yield HEAD.format_map(report["environment"])
    names = {canonicalize_name(one["metadata"]["name"]): one for one in report["install"]}
    for name in sorted(names):
        digest = names[name]["download_info"]["archive_info"]["hashes"]["sha256"]
        yield f"{name}=={names[name]['metadata']['version']} --hash=sha256:{digest}"


if __name__ == "__main__":
    print(*locked(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))), sep="\n")
