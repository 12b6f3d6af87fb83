"""Write the tables of all Markdown pages, so that no figure is typed by hand.

python tools/render_readme.py           # write
python tools/render_readme.py --check   # exit 1 and name the pages that are out of date

A table stands between `<!-- table: NAME -->` and `<!-- end -->`, on any page. The script in benchmarks/ whose function
`tables` returns NAME makes it, from the files in benchmarks/results or from the code; scripts in tools/ likewise.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

from output import Results  # a script beside the package, not a part of it

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
TOOLS = ROOT / "tools"
BLOCK = re.compile(r"^<!-- table: (?P<name>\w+) -->.*?<!-- end -->", flags=re.DOTALL | re.MULTILINE)


def all_tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Every table by name, from the scripts with a function `tables` whose results are there."""
    found: dict[str, str] = {}
    for script in sorted([*BENCHMARKS.glob("*.py"), *TOOLS.glob("*.py")]):
        if "\ndef tables(" in script.read_text(encoding="utf-8"):
            with suppress(FileNotFoundError):
                found |= importlib.import_module(script.stem).tables(results)
    return found


def render(text: str, tables: Mapping[str, str]) -> str:
    """A page with every marked block filled. Raises KeyError for a name that no script makes."""
    return BLOCK.sub(lambda block: f"<!-- table: {block['name']} -->\n{tables[block['name']]}\n<!-- end -->", text)


def pages() -> list[Path]:
    """All Markdown files that git knows or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def main() -> int:
    """Write or check all pages; the exit code is 1 if a check finds one out of date."""
    tables, check = all_tables(Results(BENCHMARKS / "results")), "--check" in sys.argv[1:]
    stale = 0
    for page in pages():
        before = page.read_text(encoding="utf-8")
        try:
            after = render(before, tables)
        except KeyError as unknown:
            sys.exit(f"{page} asks for the table {unknown}. No script in benchmarks/ or tools/ makes it.")
        if before != after and check:
            print(f"{page.relative_to(ROOT)} is out of date. Run: python tools/render_readme.py", file=sys.stderr)
            stale = 1
        elif before != after:
            page.write_text(after, encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())
