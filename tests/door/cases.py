"""All cases of the corpus, by kind and name: each module adds its own."""

import cases_classes
import cases_containers
import cases_content
import cases_depth
import cases_ends
import cases_names
import cases_published
import cases_shapes
import cases_sheets
import cases_splits
import cases_tables
from door import REFUSED, TAKEN

MODULES = (
    cases_classes,
    cases_containers,
    cases_content,
    cases_depth,
    cases_ends,
    cases_names,
    cases_published,
    cases_shapes,
    cases_sheets,
    cases_splits,
    cases_tables,
)

__all__ = ["MODULES", "REFUSED", "TAKEN"]
