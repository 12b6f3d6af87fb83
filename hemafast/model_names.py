"""Names of timm's models, read from its source files: importing timm takes seconds, and a typo should not."""

from __future__ import annotations

import re
import sys
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from hemafast.errors import HemafastError

_REGISTERED = re.compile(r"^@register_model\s*\ndef (\w+)\(", re.MULTILINE)
_DEPRECATED = re.compile(r"^    '(\w+)': '[\w.]*',?$", re.MULTILINE)


def refuse_unknown_model(name: str) -> None:
    """Raise HemafastError with close matches if timm has no model `name`, a name with or without a tag."""
    timm = sys.modules.get("timm")
    if timm is not None and hasattr(timm, "is_model") and timm.is_model(name):
        return  # a model that the user has registered is known only there
    known = known_models()
    if not known or name.partition(".")[0] in known:
        return
    close = get_close_matches(name, known, n=3)
    hint = f"Did you mean {', '.join(close)}?" if close else "`timm.list_models()` lists all models."
    raise HemafastError(f"timm has no model {name!r}.", hint)


@cache
def known_models() -> frozenset[str]:
    """Names that timm registers, old names included; empty if timm is not installed as files."""
    spec = find_spec("timm")
    folders = spec.submodule_search_locations if spec is not None else None
    if not folders:
        return frozenset()
    texts = [file.read_text(encoding="utf-8") for file in sorted(Path(folders[0], "models").glob("*.py"))]
    return frozenset(name for text in texts for kind in (_REGISTERED, _DEPRECATED) for name in kind.findall(text))
