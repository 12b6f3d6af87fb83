"""Links between the pages, and from the code to the pages, lead somewhere; commands on the pages have their options."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from hemafast.cli import app

ROOT = Path(__file__).resolve().parent.parent
PATTERNS = ("*.md", "docs/*.md", "benchmarks/*.md", "*/README.md", "hemafast/**/*.md")
PAGES = sorted({page for pattern in PATTERNS for page in ROOT.glob(pattern)})
CODE = sorted(file for folder in ("hemafast", "benchmarks", "tools", "tests") for file in (ROOT / folder).rglob("*.py"))
NAMED = re.compile(r"\b(?:docs|hemafast|benchmarks)/[\w/-]+\.md(?:#[\w-]+)?")
UNFINISHED = {"MissingParameter", "BadOptionUsage"}
"""What the parser says of the beginning of a command: an argument or a value is missing."""
FENCE = re.compile(r"^```.*?^```", flags=re.DOTALL | re.MULTILINE)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    """Targets of links and pictures, without those to other sites."""
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if "://" not in link]


def anchors(page: Path) -> set[str]:
    """Names that GitHub gives to the headings of a page."""
    titles = re.findall(r"^#+ +(.+?) *$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken(page: Path, targets: list[str]) -> Iterator[str]:
    for target in targets:
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_and_a_heading(page):
    assert not list(broken(page, links(page)))


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=name_of)
def test_the_index_links_every_page(page):
    index = ROOT / "docs" / "index.md"
    assert page == index or page.name in {link.partition("#")[0] for link in links(index)}


def test_pages_named_in_the_code_exist():
    named = {(name_of(file), link) for file in CODE for link in NAMED.findall(file.read_text(encoding="utf-8"))}
    assert named
    assert not {(file, link) for file, link in named if list(broken(ROOT / "README.md", [link]))}


def test_broken_links_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A `title`, twice\n```\n# no heading\n```\n")
    assert anchors(page) == {"a-title-twice"}
    assert list(broken(page, ["page.md", "#a-title-twice", "#no-heading", "gone.md", "page.md#gone"])) == [
        "#no-heading",
        "gone.md",
        "page.md#gone",
    ]


def blocks(page: Path) -> Iterator[list[str]]:
    """The words of each `hemafast COMMAND ...` in the shell blocks of a page."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^```sh\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    yield from _commands("\n".join(found).replace("\\\n", " ").splitlines())  # a command may go on in the next line


def mentions(page: Path) -> Iterator[list[str]]:
    """The words of each `hemafast COMMAND ...` in the text of a page. They may be the beginning of a command."""
    yield from _commands(re.findall(r"`([^`\n]+)`", prose(page)))


def _commands(lines: list[str]) -> Iterator[list[str]]:
    yield from (shlex.split(line, comments=True)[1:] for line in lines if re.match(r"hemafast [a-z]", line))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_command_line_takes_every_command_on_a_page(page):
    """Options, their values and arguments of whole commands; nothing is carried out."""
    known = typer.main.get_command(app).commands
    for name, *words in blocks(page):
        known[name].make_context(name, words)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_that_a_page_mentions_exists_with_its_options(page):
    known = typer.main.get_command(app).commands
    for name, *words in mentions(page):
        try:
            known[name].make_context(name, words)
        except typer.TyperException as error:
            if type(error).__name__ not in UNFINISHED:
                raise
        except typer.Exit:  # of --help
            pass


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_targets_of_make_and_scripts_on_a_page_exist(page):
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", text, flags=re.MULTILINE)) <= targets
    scripts = re.findall(r"\b(?:python|bash|sbatch) ((?:tools|benchmarks|docs)/\S+?\.(?:py|sh|sbatch))", text)
    assert not [script for script in scripts if not (ROOT / script).is_file()]


@pytest.mark.parametrize("wrong", ["train --epoch 3", "train --epochs three", "predict", "tran --epochs 3"])
def test_wrong_commands_are_found(tmp_path, wrong):
    page = tmp_path / "page.md"
    page.write_text(f"```sh\nhemafast {wrong}\n```\n")
    with pytest.raises((typer.TyperException, KeyError)):
        test_the_command_line_takes_every_command_on_a_page(page)


def test_the_first_page_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) < 1500
