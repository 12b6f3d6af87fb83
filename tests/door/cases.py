"""All cases of the corpus, by kind and name."""

import cases_classes
import cases_content
import cases_names
import cases_splits
import cases_tables
from door import REFUSED, TAKEN

__all__ = ["REFUSED", "TAKEN", "cases_classes", "cases_content", "cases_names", "cases_splits", "cases_tables"]
