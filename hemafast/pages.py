"""Self-contained HTML pages: templates in the packages that they belong to, one style for all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def environment(**options: Any) -> Environment:
    """Templates, named relative to this package. Everything is escaped; a missing value is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, **options)


def render(template: str, **values: Any) -> str:
    """Fill the template of a page."""
    return environment().get_template(template).render(**values)
