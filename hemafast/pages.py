"""Self-contained HTML pages: templates in the packages that they belong to, one style for all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemafast.words import counted

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

CONTENTS = "<!-- contents -->"
"""In a template: where the page lists its sections."""
_JOINT = re.compile(r"(?<=[_/-])(?=\w)")
_COMMAND = re.compile(r"`([^`]+)`")
_SECTION = re.compile(r"<h2>(.*?)</h2>", re.DOTALL)


def environment(**options: Any) -> Environment:
    """Templates, named relative to this package. Everything is escaped; a missing value is an error.

    They can count, `{{ 1|counted("image") }}`, scroll what is wide, `<div {{ wide("Scores") }}>`, and let a long name
    break where it has joints, `{{ name|jointed }}`. `{{ sentence|said }}` shows a command between backticks as code.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, **options)
    made.filters |= {"counted": counted, "jointed": _jointed, "said": _said}
    made.globals["wide"] = _wide
    return made


def _wide(label: str) -> Markup:
    """Attributes of an element that scrolls sideways where it is too wide, by keyboard too."""
    from markupsafe import Markup

    return Markup('class="wide" tabindex="0" role="region" aria-label="{}"').format(label)


def _jointed(name: Any) -> Markup:
    """A name that may break after a `_`, `/` or `-`, and so not within a word. Copied, it is the name again."""
    from markupsafe import Markup, escape

    return Markup(_JOINT.sub("<wbr>", str(escape(name))))


def _said(sentence: str) -> Markup:
    """A sentence as the terminal shows it, with what stands between backticks as code."""
    from markupsafe import Markup, escape

    return Markup(_COMMAND.sub(r"<code>\1</code>", str(escape(sentence))))


def render(template: str, **values: Any) -> str:
    """Fill the template of a page, and list its sections at CONTENTS."""
    return _with_contents(environment().get_template(template).render(**values))


def _with_contents(page: str) -> str:
    titles: list[str] = []

    def numbered(found: re.Match[str]) -> str:
        titles.append(found[1])
        return f'<h2 id="section-{len(titles)}">{found[1]}</h2>'

    page = _SECTION.sub(numbered, page)
    links = [f'<li><a href="#section-{number}">{title}</a></li>' for number, title in enumerate(titles, start=1)]
    return page.replace(CONTENTS, f'<nav aria-label="Contents"><ul>{"".join(links)}</ul></nav>', 1)
