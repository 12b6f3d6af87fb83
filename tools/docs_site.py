"""What mkdocs is told beyond mkdocs.yml: which files of the repository are pages, and what is read from the code.

The site has the paths of the repository. A link from one page to another, or to a file, therefore holds in both. A line
`<!-- site: NAME -->` on a page stands for what `GENERATED[NAME]` makes of the code when the site is built.
"""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).resolve().parent))  # mkdocs runs this file from elsewhere

import messages
import typer

from hemafast.cli import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("*.md", "docs/*.md", "benchmarks/*.md", "Source/*.md")
LOOK = ("docs/site.css", "docs/site.js")
STATIONS = {
    "preparation": "Preparing",
    "data": "Reading batches",
    "engine": "Training",
    "evaluate": "Evaluating",
    "deploy": "Using a model",
    "transfer": "Adapting",
    "experiments": "Experiments",
    "report": "Pages",
    "cli": "The command line",
}
"""Titles of the stations in the order of the data; the rest is under one more title."""
SAID = "What the message says."
"""Remedies that depend on what is wrong."""
_LINK = re.compile(r"\]\((?P<target>[^)\s#:]+)[)#]")
_MARK = re.compile(r"^<!-- site: (?P<name>\w+) -->$", flags=re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """All pages and what they link, from where they lie; beside them, the files of the theme."""
    theme = (file for file in files if not file.is_documentation_page() and file.src_dir != config.docs_dir)
    names = dict.fromkeys([name for page in pages() for name in (page, *linked(page))])
    names |= dict.fromkeys(LOOK)
    return Files([*theme, *(File(name, str(ROOT), config.site_dir, config.use_directory_urls) for name in names)])


def on_page_markdown(markdown: str, **_: object) -> str:
    """A page with its marks filled. Raises KeyError for a name that nothing makes."""
    return _MARK.sub(lambda mark: GENERATED[mark["name"]](), markdown)


def pages() -> list[str]:
    """Paths of all pages from the root of the repository."""
    return sorted(path.relative_to(ROOT).as_posix() for pattern in PAGES for path in ROOT.glob(pattern))


def linked(page: str) -> Iterator[str]:
    """Paths of files beside the pages that a page links: pictures, programs, settings."""
    for link in _LINK.finditer((ROOT / page).read_text(encoding="utf-8")):
        there = ((ROOT / page).parent / link["target"]).resolve()
        if there.is_file() and there.suffix != ".md":
            yield there.relative_to(ROOT).as_posix()


def all_messages() -> str:
    """Every error by station, with its remedy."""
    found = messages.messages()
    rest = {text: told for name in found.keys() - STATIONS for text, told in found[name].items()}
    chapters = {title: found[name] for name, title in STATIONS.items()} | {"Settings, files and weights": rest}
    return "\n\n".join(f"### {title}\n\n{_table('message', 'what to do', rows)}" for title, rows in chapters.items())


def all_commands() -> str:
    """Every command with its options. What `train` has too is not told again."""
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # typer gives a group for several
    common = {_flags(option) for option in known["train"].params}
    return "\n\n".join(_command(name, known[name], set() if name == "train" else common) for name in known)


def _command(name: str, command: typer.core.TyperCommand, common: set[str]) -> str:
    shared = sum(_flags(one) in common for one in command.params)
    many = shared > len(common) / 2
    options = (one for one in command.params if not (many and _flags(one) in common))
    rows = {_flags(one): [_help(one)] for one in options}
    also = f"\n\nBeside these, it takes {shared} options of [`train`](#train)." if many else ""
    return f"## {name}\n\n{command.help}\n\n{_table('option', 'what it does', rows, code=True)}{also}"


def _flags(option: object) -> str:
    """An option with its short form and its opposite, an argument as the usage shows it."""
    names = [*getattr(option, "opts", ()), *getattr(option, "secondary_opts", ())]
    dashed = [name for name in names if name.startswith("-")]
    return ", ".join(dashed) or getattr(option, "metavar", None) or names[0].upper()


def _help(option: object) -> str:
    """The help line, without the list that may follow it, and with the default where it does not name it."""
    text, shown = (getattr(option, "help", None) or "").partition("\n")[0], getattr(option, "show_default", None)
    default = shown if isinstance(shown, str) else getattr(option, "default", None)
    return f"{text} [{default}]" if default not in (None, False, ()) and "[" not in text else text


def _table(first: str, second: str, rows: dict[str, list[str]], *, code: bool = False) -> str:
    lines = (
        f"| {f'`{cell}`' if code else _plain(cell)} | {_plain(' '.join(told) or SAID)} |" for cell, told in rows.items()
    )
    return "\n".join([f"| {first} | {second} |", "|---|---|", *lines])


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, but for what stands between backticks."""
    parts = text.split("`")
    return "`".join(one if place % 2 else _escaped(one) for place, one in enumerate(parts)).replace("|", "&#124;")


def _escaped(text: str) -> str:
    return re.sub(r"([*_\[\]#])", r"\\\1", html.escape(text, quote=False))


GENERATED: dict[str, Callable[[], str]] = {"messages": all_messages, "commands": all_commands}
